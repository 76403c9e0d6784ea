"""The file of identities: every mistake is named with its place, and no token is repeated."""

import hashlib
from pathlib import Path

import pytest

from blora.engine.errors import PermissionDenied, Unauthenticated
from blora.engine.identity.caller import salt_of
from blora.engine.identity.filed_identities import FiledIdentities
from blora.engine.identity.identities_file import IdentitiesFile
from blora.engine.identity.tenant import Quotas
from blora.engine.identity.yaml_node import YamlNode

TOKEN = "a token of acme, long and random"
HASH = hashlib.sha256(TOKEN.encode()).hexdigest()
ACME = f"  - tenant: acme\n    token_sha256: [{HASH}]\n"
START = "identities:\n" + ACME


def written(tmp_path, text):
    path = tmp_path / "identities.yaml"
    path.write_text(text)
    return IdentitiesFile(path)


def test_everything_that_an_identity_has(tmp_path):
    text = START + (
        "    weight: 2.5\n    priorities: [-3, 7]\n    adapters: [a, 'b/*']\n    may_upload: ['acme/*']\n"
        "    quotas: {requests: 1, queued_tokens: 2, adapters: 3, upload_bytes: 4}\n"
        f"  - {{tenant: operations, token_sha256: [{'0' * 64}, {'1' * 64}], operator: true}}\n"
        "shared_prompts: [one.txt]\n"
    )
    (tmp_path / "one.txt").write_text("You help.")
    content = written(tmp_path, text).read()
    acme = content.callers[bytes.fromhex(HASH)]
    assert (acme.tenant.name, acme.tenant.weight, acme.priorities) == ("acme", 2.5, (-3, 7))
    assert acme.tenant.quotas == Quotas(requests=1, queued_tokens=2, adapters=3, upload_bytes=4)
    assert acme.tenant.salt == salt_of("acme") and acme.tenant.is_proven and not acme.is_operator
    assert [acme.may_use(name) for name in ("a", "b/c", "acme/x", "c", "a/b")] == [True, True, True, False, False]
    assert acme.may_upload_as("acme/x") and not acme.may_upload_as("a")
    operators = [caller for caller in content.callers.values() if caller.is_operator]
    assert len(operators) == 2 and operators[0].may_use("anything") and operators[0].may_upload_as("anything")
    assert content.shared_prompts == ("You help.",)


def test_little_is_allowed_by_default(tmp_path):
    (caller,) = written(tmp_path, START).read().callers.values()
    assert not caller.is_operator and not caller.may_use("a") and not caller.may_upload_as("a")
    assert caller.priorities[0] == 0 and caller.tenant.quotas == Quotas() and caller.tenant.weight is None


def test_prefixes_are_shared_on_request(tmp_path):
    file = written(tmp_path, START)
    (caller,) = IdentitiesFile(file._path, are_prefixes_shared=True).read().callers.values()
    assert caller.tenant.salt == b""


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("", 0, "is empty"),
        ("identities", 1, "no mapping"),
        ("- a", 1, "no mapping"),
        ("identities: {}", 1, "identities: is no list"),
        ("identities: []", 1, "nobody could call"),
        ("shared_prompts: []", 1, "identities are missing"),
        (START + "tokens: []", 4, "tokens: is unknown; the fields are identities, shared_prompts"),
        (START + "    weigth: 1", 4, "identities[0].weigth: is unknown"),
        (START + "    tenant: b", 4, "identities[0].tenant: is given twice"),
        (START + "    weight: heavy", 4, "identities[0].weight: is not a number"),
        (START + "    weight: 0", 4, "weight: 0.0 is not from"),
        (START + "    weight: .nan", 4, "'.nan' is not a number"),
        (START + "    weight: .inf", 4, "'.inf' is not a number"),
        (START + "    weight: true", 4, "is not a number"),
        (START + "    operator: 1", 4, "is not true or false"),
        (START + "    operator: 'true'", 4, "is not true or false"),
        (START + "    priorities: [1]", 4, "is not the lowest and the highest"),
        (START + "    priorities: [2, 1]", 4, "is not the lowest and the highest"),
        (START + "    priorities: [0, 4294967296]", 4, "identities[0].priorities[1]: 4294967296 is not from"),
        (START + "    adapters: all", 4, "is no list"),
        (START + "    adapters: [1]", 4, "adapters[0]: is not a text; put it in quotes"),
        (START + "    adapters: [[a]]", 4, "adapters[0]: is not a text"),
        (START + "    quotas: {request: 1}", 4, "quotas.request: is unknown"),
        (START + "    quotas: {requests: -1}", 4, "-1 is not from 0"),
        (START + "    quotas: {requests: 1.5}", 4, "is not a whole number"),
        (START + "shared_prompts: [missing.txt]", 4, "shared_prompts[0]: cannot be read: No such file"),
        (START + ACME, 5, "token_sha256[0]: is the token of an identity before"),
        (START + f"  - {{tenant: acme, token_sha256: [{'2' * 64}], weight: 3}}", 4, "another weight or other quotas"),
        ("identities:\n- token_sha256: []", 2, "identities[0]: tenant is missing"),
        ("identities:\n- tenant: a", 2, "identities[0]: token_sha256 is missing"),
        ("identities:\n- {tenant: a, token_sha256: []}", 2, "token_sha256: is empty"),
        ("identities:\n- {tenant: '', token_sha256: []}", 2, "tenant: is not a printable text"),
        ('identities:\n- {tenant: "a\\0", token_sha256: []}', 2, "tenant: is not a printable text"),
        (f"identities:\n- {{tenant: a, token_sha256: [{TOKEN}]}}", 2, "is no sha256 of a token"),
        ("identities:\n- {tenant: a, token_sha256: ['" + "é" * 64 + "']}", 2, "is no sha256"),
        ("identities: [\n", 2, "did not find expected node content"),
    ],
    ids=range(36),
)
def test_a_mistake_is_named_with_its_place(text, line, found, tmp_path):
    with pytest.raises(ValueError, match="identities.yaml") as caught:
        written(tmp_path, text).read()
    assert found in str(caught.value) and TOKEN.partition(",")[0] not in str(caught.value)
    assert not line or f"identities.yaml:{line}: " in str(caught.value)


def test_the_tenant_comes_from_the_token(tmp_path):
    known = FiledIdentities(written(tmp_path, START))
    assert known.of(TOKEN) is known.of(TOKEN, "acme") and known.of(TOKEN).tenant.name == "acme"
    with pytest.raises(PermissionDenied):
        known.of(TOKEN, "other")
    for token in (None, "", TOKEN[:-1], TOKEN + "x", HASH, "\ud800", "x" * 10_000):
        with pytest.raises(Unauthenticated):
            known.of(token)


def test_a_file_with_a_mistake_changes_nothing(tmp_path, caplog):
    known = FiledIdentities(written(tmp_path, START))
    assert not known.refresh()
    written(tmp_path, START + "    weight: x")
    assert not known.refresh() and "identities[0].weight" in caplog.text
    assert known.of(TOKEN).tenant.name == "acme"
    written(tmp_path, START.replace("acme", "renamed"))
    assert known.refresh() and known.of(TOKEN).tenant.name == "renamed"
    (tmp_path / "identities.yaml").unlink()
    assert not known.refresh() and known.of(TOKEN).tenant.name == "renamed"


def test_a_shared_prompt_is_read_again(tmp_path):
    (tmp_path / "one.txt").write_text("before")
    known = FiledIdentities(written(tmp_path, START + "shared_prompts: [one.txt]"))
    (tmp_path / "one.txt").write_text("after that")
    assert known.refresh() and known.shared_prompts == ("after that",)


def test_a_file_that_is_written_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    known = FiledIdentities(written(tmp_path, START))
    written(tmp_path, START.replace("acme", "half"))
    read = YamlNode.read

    def read_too_early(path):
        found = read(path)
        written(tmp_path, START.replace("acme", "complete"))
        return found

    monkeypatch.setattr(YamlNode, "read", read_too_early)
    assert known.refresh() and known.of(TOKEN).tenant.name == "half"
    monkeypatch.undo()
    assert known.refresh() and known.of(TOKEN).tenant.name == "complete"
    assert not known.refresh()


def test_the_example_is_one():
    known = FiledIdentities(IdentitiesFile(Path(__file__).parents[3] / "examples/identities.yaml"))
    assert known.of("operations-token").is_operator and known.of("studio-token").may_upload_as("studio/new")
    assert known.of("acme-token").tenant.quotas.requests == 64 and not known.of("acme-token").may_use("studio/new")
