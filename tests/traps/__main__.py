"""`make traps`: what each trap of the reference changes on the miniature, into docs/traps.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis.stats import Interval, t_interval
from tests.traps.measure import SEEDS, Measured, Trained, measure

PAGE = Path(__file__).parents[2] / "docs" / "traps.md"
HEAD = f"""# What each trap of the reference changes

The reference of one-shot EM ([zitian-gao/one-shot-em](https://github.com/zitian-gao/one-shot-em)) has habits that a rewrite
should not take over unawares. Each is switched on here by itself, on the shipped miniature (`make traps`).
`tests/reference_step.py` has the habits; without them it gives our loss, gradient and ten updates, to 1e-5 in fp32
(`tests/test_parity.py`). Trained arms have {len(SEEDS)} seeds unless said otherwise. Differences are paired by seed, with 95%
t-intervals; p-values are after Holm within each table. Cosine and length are those of the gradient at step 1 beside the right one
on the same sequences.

The miniature answers in about 12 tokens and decides how it answers with the first of them. What drops or adds one token per
completion weighs more here than among 512: read the sizes as "can matter", the directions and the zeros as they are."""


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def number(x: float, digits: int = 3, sign: bool = False) -> str:
    """`.123`, without the zero before the point; what rounds to 0 is `0`."""
    if round(x, digits) == 0:
        return "0"
    return f"{x:{'+' if sign else ''}.{digits}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:{'+' if sign else ''}.{digits}f}"


def interval(x: Interval) -> str:
    return f"{number(x.mean)} [{number(x.lo)}, {number(x.hi)}]"


def p_value(p: float) -> str:
    return "" if math.isnan(p) else "< .001" if p < 1e-3 else number(p) if p < 1 else "1"


def difference(row: dict[str, float]) -> str:
    return f"{number(row['difference'], 3, True)} [{number(row['lo'], 3, True)}, {number(row['hi'], 3, True)}]"


def percent(x: Interval) -> str:
    digits = 1 if abs(x.mean) > 1 else 2
    return "0" if abs(x.mean) < 5e-4 else f"{x.mean:+.{digits}f}% [{x.lo:+.{digits}f}, {x.hi:+.{digits}f}]"


def trained_table(found: Trained) -> str:
    rows = found.differences()
    lines = []
    for arm, values in zip(found.arms, found.accuracy, strict=True):
        line = [arm, interval(t_interval(values)), number(values.min())]
        line += [difference(rows[arm]), p_value(rows[arm]["p_holm"])] if arm in rows else ["", ""]
        lines.append(line)
    return table(("arm", "accuracy [95%]", "worst seed", "difference [95%]", "p"), lines)


def in_short(m: Measured) -> str:
    """One line per trap: what the reference does, what ours does, what that changed here."""
    steps = {(s.habit.split()[0], s.sequences): s for s in m.steps}
    calm, hot, many = (t.differences() for t in m.trained)
    one, low, eight = "one prompt", "one prompt, bf16", "8 prompts of 9 to 11 tokens"

    def step(trap: str, where: str) -> str:
        return f"loss {percent(steps[trap, where].loss)}, cosine {number(steps[trap, where].cosine)}"

    def said(rows: dict[str, dict[str, float]], trap: str) -> str:
        return difference(next(row for arm, row in rows.items() if arm.split()[0] == trap))

    def accuracy(trap: str) -> str:
        return f"accuracy {said(calm, trap)}, where it collapses {said(hot, trap)}, 8 prompts {said(many, trap)}"

    counted, slow, top_p = m.counted.differences(), m.times[-1], m.top_p.differences()["top_p dropped"]
    lost, kept = (next(w for w in m.ways if w.learning_rate == 2e-5 and w.weights.startswith(s)) for s in ("bare", "bf16"))
    rows = [
        ("1", "a step is a micro-batch of each GPU: 10 steps are no update on one GPU, 2 on 8, 10 on 32", "a step is an update",
         f'accuracy after "10 steps" on one GPU {said(counted, "0")}, on 8 {said(counted, "2")}'),
        ("2", "one seed on every rank, so all draw the same samples", "draws are keyed by sample index",
         f"of 8 completions {m.distinct[1]:.1f} differ instead of {m.distinct[0]:.1f}; {accuracy('2')}"),
        ("3", "left padding: the last pad-count tokens of the prompt count as generated", "the mask is made while sampling",
         f"one prompt: nothing; 8 prompts: {step('3', eight)}; accuracy {said(many, '3')}"),
        ("4", "off by one: the first token is dropped, cut completions gain one", "a token is scored where it is predicted",
         f"{step('4', one)}; {accuracy('4')}"),
        ("5", "padding is the end token, which is then neither seen nor scored", "the mask holds the end token",
         f"{step('5', one)}; {accuracy('5')}"),
        ("6", "generation without a KV cache", "a cache; finished rows leave the batch",
         f"{slow.uncached / slow.cached:.1f} times as long at {slow.tokens} tokens, the reference's way (two rows at a time) "
         f"{slow.reference / slow.ours:.0f} times"),
        ("7", "softmax and log(p + 1e-12) at all positions", "log-softmax in fp32 of the completions, in chunks",
         f"loss {percent(steps['7', one].loss)} in fp32, {percent(steps['7', low].loss)} in bf16, cosine "
         f"{number(steps['7', low].cosine, 4)}; memory, by arithmetic: logits, p and log p are .6 GiB each for two "
         "completions of 512 tokens and 152,000 words, 18.6 GiB for 64"),
        ("8", "mean of micro-batch means", "one mean over all tokens of the update", f"{step('8', one)}; {accuracy('8')}"),
        ("9", "samples with top_p, top_k and a penalty, scores the full softmax", "the same: it is the paper's method, and said",
         "nothing to compare"),
        ("10", "a full checkpoint every step, and no way to go on from one", "`keep`; `save_steps` to go on",
         "not measured; by arithmetic 15 GB a step and 152 GB a run at 7.6e9 weights in bf16"),
        ("11", "the evaluator drops `seed` and `top_p`", "draws are keyed by the seed; `top_p` is part of `eval_id`",
         f"the same weights score with an sd of {number(m.seeds_sd)} over seeds (temperature .6); top_p .95 dropped: "
         f"{difference(top_p)}"),
        ("12", "AdamW on bare bf16 weights (a rewrite's trap: DeepSpeed keeps fp32 masters)", "fp32 masters",
         f"ten updates at rate 2e-5 move {lost.moved:.1%} of the weights (with masters {kept.moved:.0%}) and end "
         f"{lost.distance:.0%} of the way from where fp32 ends ({kept.distance:.0%}); "
         f"accuracy {said(m.bare.differences(), '12')}"),
    ]  # fmt: skip
    return table(("trap", "the reference", "here", "what it changed"), rows)


READING = """- **Off by one decides.** The first token says which way the miniature answers; a loss that leaves it out sharpens
  the rest and teaches nothing (with one prompt accuracy stays near the base model's).
- **Two errors that cancel in part.** On a padded row, left padding and off by one together count the prompt's last position,
  where the first token is predicted: that row gets its first token back. So all habits together lose little with prompts of
  unequal length, and nearly everything with one prompt. (Here 5 of 8 rows are padded, to the longest of 8; the reference pads two
  by two.)
- **A loss that is off need not matter.** A hidden end token and micro-batch means change the loss by tenths, the gradient's
  direction hardly; clipping and AdamW take its length away. What is left is a small difference with 8 prompts (trap 8). But the
  loss that the reference logs cannot be compared with ours.
- **Equal samples on all ranks change nothing measurable here.** Where training collapses, seeds differ by so much that an effect
  of a tenth could not be seen with these seeds.
- **Counting micro-batches and bare bf16 weights** are the traps that quietly train less."""


def steps_table(m: Measured) -> str:
    rows = [(s.habit, f"{s.sequences} ({s.cut:.0%} cut)", percent(s.loss), number(s.cosine), number(s.length)) for s in m.steps]
    return table(("habit", "sequences", "loss [95%]", "cosine", "length"), rows)


def ways_table(m: Measured) -> str:
    rows = [
        (f"{w.learning_rate:.0e}".replace("-0", "-"), w.weights, f"{w.moved:.1%}", *map(number, (w.distance, w.cosine, w.length)))
        for w in m.ways
    ]
    return table(("rate", "weights", "share that moved", "distance to fp32's end", "cosine", "length"), rows)


def times_table(m: Measured) -> str:
    rows = [
        (str(t.tokens), *(f"{x:.2f} s" for x in (t.ours, t.cached, t.uncached, t.reference)),
         f"{t.uncached / t.cached:.1f}", f"{t.reference / t.ours:.1f}")
        for t in m.times
    ]  # fmt: skip
    names = ("tokens", "a: our loop", "b: `generate`", "c: without cache", "d: c, two rows at a time", "c : b", "d : a")
    return table(names, rows)


def page(m: Measured) -> str:
    parts = [HEAD, "## In short", in_short(m), READING, "## One step: the same weights and sequences", steps_table(m)]
    parts.append(f"The first token holds {m.first_token:.0%} of the loss (one prompt).")
    parts.append("## Trained: greedy accuracy on 200 questions")
    for found in m.trained:
        parts += [f"### {found.said[0].upper()}{found.said[1:]}", trained_table(found)]
    parts += ["### Micro-batches that count as steps (trap 1): one prompt, as in the first table", trained_table(m.counted)]
    parts += [
        "## bf16 weights without masters (trap 12)",
        "Ten updates on the same sequences. Distance and length are shares of the way that fp32 makes, cosine is that with it.",
        ways_table(m), f"Trained ({m.bare.said}; {m.bare.accuracy.shape[1]} seeds):", trained_table(m.bare),
        "## No KV cache (trap 6)", "Seconds for 8 completions of a fixed length, in turn, medians of three, on one core.",
        times_table(m),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main() -> None:
    PAGE.write_text(page(measure()), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
