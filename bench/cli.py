"""`blora bench`: the flags of every program. Imports a program, and torch with it, only to run it."""

import argparse
from importlib import import_module
from pathlib import Path

from blora.engine.config import BACKENDS

from . import serve, sweep_rate
from .flag_types import count, whole_number
from .workload import POPULARITIES

EXTRAS = ("aiohttp", "hdrh", "matplotlib")  # packages of the extra `bench`
HELP = "measure throughput, kernels and steps on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    programs = parser.add_subparsers(dest="program", required=True, metavar="PROGRAM")
    _add_throughput(programs.add_parser("throughput", help="tokens per second, with adapters and without, in process"))
    _add_kernels(programs.add_parser("kernels", help="time of each kernel against the limits of the machine"))
    _add_profile(programs.add_parser("profile_step", help="parts of the time of a decode step"))
    _add_sweep(programs.add_parser("sweep", help="throughput over rows and numbers of adapters, with plots"))
    _add_idle(programs.add_parser("idle_adapters", help="cost of loaded but unused adapters to base requests"))
    _add_busy_core(programs.add_parser("busy_core", help="one thread and several, alone and beside a busy process"))
    _add_grammar(programs.add_parser("grammar", help="cost of structured output to a decode step"))
    _add_footprint(programs.add_parser("footprint", help="seconds until a server serves, and the memory it takes"))
    _add_many(programs.add_parser("adapters", help="speed with up to thousands of adapters, then `loading`"))
    _add_loading(programs.add_parser("loading", help="effect of loading adapters on rows that decode"))
    _add_fairness(programs.add_parser("fairness", help="time to first token of each adapter, fair and fcfs, simulated"))
    _add_triton(programs.add_parser("triton", help="resources of the GPU's compiled LoRA kernels; needs no GPU"))
    _add_gpu(programs.add_parser("gpu", help="correctness and speed on a GPU, in a report to send back"))
    _add_roofline(programs.add_parser("roofline", help="cost of adapters to a step on GPUs, by arithmetic"))
    serve.add_arguments(programs.add_parser("serve", help=serve.HELP))
    _add_sweep_rate(programs.add_parser("sweep-rate", help="highest request rate that meets a goal, by bisection"))
    _add_compare(programs.add_parser("compare", help="two results beside each other, and what of it is noise"))
    _add_doors(programs.add_parser("doors", help="throughput of streams in process, over gRPC and over HTTP"))
    plots = programs.add_parser("plots", help="draw the plots of a sweep again")
    plots.add_argument("file", type=Path, metavar="FILE", help="throughput.json, as a sweep wrote it")


def run(args: argparse.Namespace) -> int:
    """Runs the program; returns its exit status. A mistake in its options ends it with one line and no traceback."""
    try:
        return int(import_module(f".{args.program.replace('-', '_')}", __package__).run(args))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        needs = f"needs {package}: pip install '.[bench]'"
        raise SystemExit(f"blora bench {args.program} {needs}") from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"blora bench {args.program}: {error}") from None


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    parser.add_argument("--rows", type=count, default=16, metavar="N", help="requests at once (default: %(default)s)")
    parser.add_argument(
        "--adapters",
        type=whole_number,
        default=0,
        metavar="N",
        help="adapters to use (default: 0, the base model only)",
    )
    _add_adapters(parser)
    parser.add_argument(
        "--popularity",
        choices=POPULARITIES,
        default="uniform",
        help="how rows are spread over adapters (default: %(default)s)",
    )
    parser.add_argument(
        "--base-share", type=_share, default=0.0, metavar="SHARE", help="share of rows without an adapter"
    )
    _add_lengths(parser)
    _add_rounds(parser, 3)
    _add_json(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    _add_adapters(parser)
    _add_lengths(parser)
    _add_rounds(parser, 3)
    parser.add_argument(
        "--rows",
        type=_counts,
        default=(1, 2, 4, 8, 16, 32, 64, 128),
        metavar="LIST",
        help="rows of the sweep over rows, with 8 adapters (default: 1,2,4,...,128)",
    )
    parser.add_argument(
        "--adapters",
        type=_counts,
        default=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        metavar="LIST",
        help="adapters of the sweep over adapters (default: 1,2,4,...,256)",
    )
    parser.add_argument(
        "--adapter-rows",
        type=count,
        default=64,
        metavar="N",
        help="rows of the sweep over adapters (default: %(default)s)",
    )
    _add_results(parser)


def _add_many(parser: argparse.ArgumentParser) -> None:
    _add_loading(parser)
    parser.add_argument(
        "--adapters",
        type=_counts,
        default=(1, 8, 64, 512, 2000),
        metavar="LIST",
        help="numbers of adapters (default: 1,8,64,512,2000)",
    )
    parser.add_argument(
        "--requests", type=count, default=128, metavar="N", help="requests of a pass (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="passes (default: %(default)s)")
    _add_lengths(parser, output_len=32)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder")
    _add_rank(parser)
    parser.add_argument(
        "--loads", type=count, default=200, metavar="N", help="adapters to load under traffic (default: %(default)s)"
    )
    parser.add_argument(
        "--memory", default="600M", metavar="SIZE", help="arena for KV and adapters (default: %(default)s)"
    )
    _add_threads(parser)
    _add_adapter_folder(parser)
    _add_results(parser)


def _add_fairness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapters", type=count, default=200, metavar="N", help="adapters (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=6.0, metavar="N", help="requests/s (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="seconds of arrivals (default: %(default)s)")
    _add_seed(parser)
    _add_results(parser)


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes",
        type=_words,
        default=("smollm2-135m", "llama-7b"),
        metavar="LIST",
        help="models whose shapes to use (default: smollm2-135m,llama-7b)",
    )
    parser.add_argument(
        "--kernels",
        type=_words,
        default=("linear", "attention", "norm", "lora"),
        metavar="LIST",
        help="kernels to measure (default: linear,attention,norm,lora)",
    )
    parser.add_argument(
        "--rows",
        type=_counts,
        default=(1, 4, 8, 16, 32, 64, 128),
        metavar="LIST",
        help="rows of linears (default: 1,4,8,16,32,64,128)",
    )
    parser.add_argument(
        "--ranks",
        type=_counts,
        default=(4, 8, 16, 32, 64),
        metavar="LIST",
        help="ranks of adapters (default: 4,8,16,32,64)",
    )
    parser.add_argument(
        "--instruction-set", metavar="NAME", help="amx, avx512bf16, avx512, avx2 or base (default: the best)"
    )
    _add_threads(parser)
    parser.add_argument("--seconds", type=float, default=0.3, help="seconds for each figure (default: %(default)s)")
    _add_json(parser)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    _add_row_numbers(parser)
    parser.add_argument("--adapters", type=count, default=8, metavar="N", help="adapters to use (default: %(default)s)")
    _add_adapters(parser)
    _add_lengths(parser)
    _add_json(parser)


def _add_idle(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    _add_row_numbers(parser)
    parser.add_argument("--adapters", type=count, default=64, metavar="N", help="idle adapters (default: %(default)s)")
    _add_adapters(parser)
    _add_lengths(parser)
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help="measured passes (default: %(default)s)")
    _add_json(parser)


def _add_busy_core(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    parser.add_argument("--rows", type=count, default=1, metavar="N", help="requests at once (default: %(default)s)")
    _add_lengths(parser)
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help="measured passes (default: %(default)s)")
    _add_json(parser)


def _add_grammar(parser: argparse.ArgumentParser) -> None:
    _add_engine(parser)
    parser.add_argument(
        "--rows", type=count, nargs="+", default=[1, 16, 64], metavar="N", help="requests at once (default: 1 16 64)"
    )
    _add_lengths(parser)
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="measured passes (default: %(default)s)")
    _add_json(parser)


def _add_footprint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id")
    parser.add_argument("--memory", default="512MiB", metavar="SIZE", help="size of the arena (default: %(default)s)")
    parser.add_argument(
        "--requests", type=count, default=10_000, metavar="N", help="requests to send (default: %(default)s)"
    )
    parser.add_argument(
        "--adapters", type=count, default=4, metavar="N", help="adapters to load (default: %(default)s)"
    )
    parser.add_argument(
        "--starts", type=count, default=3, metavar="N", help="starts of the server (default: %(default)s)"
    )
    _add_adapter_folder(parser)
    _add_json(parser)


def _add_doors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id")
    parser.add_argument("--memory", default="512MiB", metavar="SIZE", help="size of the arena (default: %(default)s)")
    parser.add_argument("--rows", type=count, default=64, metavar="N", help="streams at once (default: %(default)s)")
    _add_threads(parser)
    _add_lengths(parser, output_len=128)
    _add_rounds(parser, 5)
    _add_json(parser)


def _add_triton(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--architectures",
        type=_counts,
        default=(80, 90, 100, 120),
        metavar="LIST",
        help="compute capabilities of GPUs, without the point (default: 80,90,100,120)",
    )
    parser.add_argument(
        "--dtypes",
        type=_words,
        default=("bfloat16", "float16"),
        metavar="LIST",
        help="data types (default: bfloat16,float16)",
    )
    _add_json(parser)


def _add_roofline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes",
        type=_words,
        default=("llama-7b", "llama-3-8b", "llama-3-70b"),
        metavar="LIST",
        help="models whose shapes to use (default: llama-7b,llama-3-8b,llama-3-70b)",
    )
    parser.add_argument(
        "--adapters",
        type=_counts,
        default=(1, 2, 4, 8, 16, 32, 64),
        metavar="LIST",
        help="numbers of adapters in the batch (default: 1,2,4,...,64)",
    )
    parser.add_argument(
        "--rows", type=count, default=64, metavar="N", help="rows of a decode step (default: %(default)s)"
    )
    parser.add_argument(
        "--context", type=count, default=512, metavar="TOKENS", help="length of each row (default: %(default)s)"
    )
    _add_rank(parser)
    _add_json(parser)


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="data type (default: %(default)s)"
    )
    parser.add_argument(
        "--reference",
        choices=("reference", "cpu"),
        default="reference",
        help="backend on the CPU to compare with (default: %(default)s)",
    )
    _add_row_numbers(parser)
    _add_adapters(parser)
    parser.set_defaults(ranks=(8, 16, 32, 64))
    _add_lengths(parser)
    _add_rounds(parser, 3)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench/results"),
        metavar="DIR",
        help="write the report here (default: %(default)s)",
    )


def _add_sweep_rate(parser: argparse.ArgumentParser) -> None:
    serve.add_arguments(parser)
    sweep_rate.add_arguments(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "before", type=Path, metavar="A.json", help="results of `blora bench serve`, a run a line or one"
    )
    parser.add_argument("after", type=Path, metavar="B.json", help="results to compare with them")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="data type of the model, KV and adapters (default: %(default)s)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="kernels to use (default: %(default)s)")
    _add_threads(parser)
    parser.add_argument(
        "--memory", metavar="SIZE", help="arena for KV and adapters (default: as much as the work needs)"
    )


def _add_adapters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=_counts, default=(16,), metavar="LIST", help="ranks of the adapters, in turn (default: 16)"
    )
    parser.add_argument(
        "--modules", type=_modules, metavar="LIST", help="modules with LoRA, such as q_proj,v_proj (default: all)"
    )
    _add_adapter_folder(parser)


def _add_row_numbers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", type=_counts, default=(1, 16, 64), metavar="LIST", help="numbers of rows (default: 1,16,64)"
    )


def _add_rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank", type=count, default=16, metavar="R", help="rank of the adapters (default: %(default)s)"
    )


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=count, metavar="N", help="compute threads (default: torch's choice)")


def _add_adapter_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter-folder",
        type=Path,
        default=Path(".cache/bench-adapters"),
        metavar="DIR",
        help="keep random adapters here (default: %(default)s)",
    )


def _add_lengths(parser: argparse.ArgumentParser, output_len: int = 64) -> None:
    parser.add_argument(
        "--prompt-len", type=count, default=64, metavar="TOKENS", help="tokens of a prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--output-len",
        type=count,
        default=output_len,
        metavar="TOKENS",
        help="tokens of an output (default: %(default)s)",
    )
    _add_seed(parser)


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of the workload (default: %(default)s)")


def _add_rounds(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument(
        "--rounds", type=count, default=rounds, metavar="N", help="measured passes (default: %(default)s)"
    )
    parser.add_argument(
        "--warmups", type=whole_number, default=1, metavar="N", help="unmeasured passes before (default: %(default)s)"
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=Path("bench/results"), help="write results here (default: %(default)s)"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here as JSON")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(count, text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _modules(text: str) -> tuple[str, ...] | None:
    return None if text == "all" else _words(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return share
