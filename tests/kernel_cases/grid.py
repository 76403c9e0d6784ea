"""A long run of random cases of all kernels, each case on the next build. `make kernels-grid` starts it.

python -m kernel_cases.grid --cases 50000                   # from a random seed, which is printed
python -m kernel_cases.grid --cases 1 --seed 17 --build avx2   # a case again
"""

import argparse
import random
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from tqdm import tqdm

from blora.engine.kernels.library import Kernels, load_kernels

from .build import EMULATED, build_emulated, builds, path_of
from .random_cases import check_case

MOST_FAILURES = 10  # the run ends after so many


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    print(f"{args.cases} cases from seed {args.seed} on {', '.join(args.build)}", flush=True)
    loaded = (_load(name, args.kernels) for name in args.build)
    libraries = [kernels for kernels in loaded if kernels is not None]
    failures = _walk(libraries, range(args.seed, args.seed + args.cases))
    print(f"{failures} cases failed" if failures else "all is well")
    return 1 if failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 40), help="of the first case")
    parser.add_argument("--build", nargs="+", choices=builds(), default=builds())
    parser.add_argument("--kernels", type=Path, help="folder with the builds, instead of those that are installed")
    return parser.parse_args(arguments)


def _load(name: str, kernels: Path | None) -> Kernels | None:
    """None where the operating system does not let it run."""
    try:
        if kernels is not None:
            return Kernels(name, path_of(kernels, name))
        if name == EMULATED:
            return Kernels(name, build_emulated())
        built = load_kernels(name)
    except PermissionError as error:
        print(error, flush=True)
        return None
    if built is None:
        raise SystemExit(f"the kernels for {name} were not built")
    return built


def _walk(libraries: Sequence[Kernels], seeds: range) -> int:
    """Runs the cases and returns the number of failures."""
    failures = 0
    for seed, kernels in zip(tqdm(seeds, unit=" cases", mininterval=1), cycle(libraries), strict=False):
        try:
            check_case(seed, kernels)
        except AssertionError as error:
            failures += 1
            tqdm.write(
                f"{error}\n\nagain: --cases 1 --seed {seed} --build {kernels.instruction_set}\n", file=sys.stdout
            )
            if failures == MOST_FAILURES:
                break
    return failures


if __name__ == "__main__":
    sys.exit(main())
