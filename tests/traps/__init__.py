"""What each trap of the reference changes, measured on the shipped miniature (`make traps`, docs/traps.md).

`settings` says what is trained and which of the reference's habits are on, `measure` measures, `__main__` writes the page.
Every arm is trained by the reference's update (tests/reference_step.py); with all habits off that is the trainer's
(tests/test_parity.py).
"""
