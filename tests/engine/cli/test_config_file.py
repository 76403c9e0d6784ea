"""Flags from a file: what they mean is what the same flags mean on the command line, which wins."""

import os
from pathlib import Path

import pytest

from blora.engine.cli import main as cli
from blora.engine.cli.config_file import ConfigError, with_config

SERVER = """
model: some/model
max-model-len: 512
max_num_seqs: 8
port: 0
adapter: {a: /x, b: hub/id}
adapter-root: [/roots/one, /roots/two]
enable-prefix-caching: false
tenant-weights: {gold: 4, free: 0.5}
lora-modules: [c=/y, '{"name": "d", "path": "/z"}']
disable-log-stats: true
revision:
"""


def parse(*argv: str):
    parser = cli.build_parser()
    return parser.parse_args(with_config(argv, parser))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(SERVER)
    return path


def test_a_file_says_what_flags_say(config: Path) -> None:
    line = """
        serve some/model --max-model-len 512 --max-num-seqs 8 --port 0 --adapter a=/x --adapter b=hub/id
        --adapter-root /roots/one --adapter-root /roots/two --no-enable-prefix-caching --tenant-weights gold=4,free=0.5
        --disable-log-stats --lora-modules c=/y
    """
    expected = parse(*line.split(), '{"name": "d", "path": "/z"}')
    found = parse("serve", "--config", str(config))
    expected.config = found.config
    assert vars(found) == vars(expected)


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_flags_win(config: Path, form: list[str]) -> None:
    given = ["other/model", "--max-num-seqs=4", "--adapter", "z=/z", "--enable-prefix", "--tenant_weights", "iron=1"]
    args = parse("serve", *[part.format(config) for part in form], *given)
    assert args.model == "other/model" and args.max_num_seqs == 4 and args.adapter == [("z", "/z")]
    assert args.enable_prefix_caching is True and args.tenant_weights == {"iron": 1.0}
    assert args.max_model_len == 512


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-model-lenght: 5", "'max-model-lenght' is no flag of blora serve; the nearest one is 'max-model-len'"),
        ("metrics_prot: 5", "the nearest one is 'metrics-port'"),
        ("config: other.yaml", "'config' is no flag"),
        ("- 5", "has to have names of flags"),
        ("a: [", "is not YAML"),
        ("disable-log-stats: 5", "'disable-log-stats' is true or false, not 5"),
    ],
)
def test_what_is_no_flag_is_an_error_that_names_it(tmp_path: Path, text: str, words: str, capsys) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as raised:
        cli.main(["serve", "m", "--config", str(path)])
    assert raised.value.code == 2 and words in capsys.readouterr().err


def test_a_value_of_a_wrong_type_is_the_flags_error(tmp_path: Path, capsys) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("port: high")
    with pytest.raises(SystemExit):
        cli.main(["serve", "m", "--config", str(path)])
    assert "argument --port: 'high' is not a port" in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "m", "--config", str(tmp_path / "none.yaml")])
    path = tmp_path / "none.yaml"
    assert f"--config: the file of flags {path} cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("argv", ["client hi", "info", "top", "adapters list", "adapters load a /x"])
def test_commands_below_commands_take_a_file_too(argv: str, tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    path.write_text("target: there:1\nssl-ca-certs: /ca.pem\n")
    args = parse(*argv.split(), "--conf", str(path))  # flags may be shortened
    assert args.target == "there:1" and args.ssl_ca_certs == Path("/ca.pem")


def test_programs_of_bench_take_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text("rows: 4\nranks: [8, 16]\n")
    parser = cli.build_parser(cli.further_commands())
    args = parser.parse_args(with_config(["bench", "throughput", "m", "--config", str(path)], parser))
    assert args.rows == 4 and args.ranks == (8, 16)


def test_commands_without_flags_take_no_file(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["collect-env", "--config", "x"])
    assert "unrecognized arguments: --config" in capsys.readouterr().err


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / os.devnull.strip("/")
    path.parent.mkdir(exist_ok=True)
    path.write_text("# nothing yet\n")
    parser = cli.build_parser()
    (commands,) = (action.choices for action in parser._actions if action.dest == "command")
    assert with_config(["m", "--config", str(path)], commands["serve"]) == ["m", "--config", str(path)]
    assert issubclass(ConfigError, ValueError)
