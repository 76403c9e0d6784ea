"""Bounds of tallies: vLLM's where it has the same one, so that its boards and alarms fit."""

# fmt: off
FIRST_TOKEN_BOUNDS = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)
GAP_BOUNDS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_BOUNDS = (
    .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)
STEP_TOKENS_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STEP_BOUNDS = (.001, .0025, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2.5, 5)
RATIO_BOUNDS = (.25, .5, .75, .9, 1, 1.1, 1.25, 1.5, 2, 3, 5)
SAMPLES_BOUNDS = (1, 2, 5, 10, 20)
PREEMPTIONS_BOUNDS = (0, 1, 2, 5, 10, 20, 50)
# fmt: on


def length_bounds(most: int) -> list[int]:
    """1, 2, 5, 10, ... up to `most` tokens."""
    return [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5) if digit * 10**power <= most]
