"""`blora bench adapters` on a tiny model: thousands of adapters are loaded, and its report is measured."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from blora.bench import adapters, loading
from blora.bench.many_adapters import load_many
from blora.engine import LLM, SamplingParams
from blora.engine.cli import main as cli


def test_adapters_of_one_folder_share_their_pages(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    folders = [tiny_adapters["r4"], tiny_adapters["r8"]]
    llm = LLM(str(tiny_model), backend="reference", memory="2MB", host_cache=None)
    names = load_many(llm, folders, 5)
    llm.load_adapter("itself", folders[0])
    infos = [llm.get_adapter(name) for name in names]
    assert len({info.digest for info in infos} | {llm.get_adapter("itself").digest}) == 6
    assert [info.path for info in infos] == [str(folders[index % 2]) for index in range(5)]
    assert [info.ranks for info in infos] == [(4,), (8,), (4,), (8,), (4,)]
    greedy = SamplingParams(temperature=0)
    one, other = (llm.generate("x", greedy, name, use_tqdm=False)[0].outputs[0] for name in ("adapter2", "itself"))
    assert one.token_ids == other.token_ids
    llm.check_idle()


def test_the_report(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[Namespace] = []

    def follow(args: Namespace) -> int:
        followed.append(args)
        return 0

    monkeypatch.setattr(loading, "run", follow)
    flags = "--adapters 1,9 --requests 6 --rounds 1 --prompt-len 4 --output-len 2 --rank 2 --memory 1MB --threads 1"
    folders = [f"--folder={tmp_path}", f"--adapter-folder={tmp_path / 'made'}"]
    assert cli.main(["bench", "adapters", str(tiny_model), *flags.split(), *folders]) == 0
    report = json.loads((tmp_path / adapters.FILE).read_text())
    counts = [(point["popularity"], point["adapters"]) for point in report["points"]]
    assert counts == [("uniform", 1), ("uniform", 9), ("skewed", 1), ("skewed", 9)]
    assert all(point["throughput"] > 0 and 0 < point["hit_rate"] <= 1 for point in report["points"])
    assert followed
