"""The shipped training prompts, by name. Never imports torch."""

PROMPTS: dict[str, str] = {
    "plus": "Q:12+7+5=?",
    "minus": "Q:17-8+4=?",
}
"""Name -> text as fed to the model; the completion starts right after it. Both are for the miniature."""
