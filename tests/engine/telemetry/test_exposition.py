"""/metrics: what an engine's work becomes there, in the text that scrapers read."""

import asyncio
import ssl
import urllib.error
import urllib.request

import pytest
from certificates import Authority
from fake_llm import FakeLLM
from prometheus_client.parser import text_string_to_metric_families

from blora.engine import AsyncLLM, SamplingParams
from blora.engine.errors import EngineUnavailable, PermissionDenied, Unauthenticated
from blora.engine.telemetry.exposition import MetricsApp, render
from blora.engine.telemetry.families import ABSENT, FAMILIES
from blora.engine.telemetry.metrics_port import metrics_port

pytestmark = pytest.mark.slow
GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, n=2)


def values(text: str) -> dict[str, float]:
    """Sample with its own labels -> value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {key: value for key, value in sample.labels.items() if key not in ("model_name", "engine")}
            labels = ",".join(f"{key}={value}" for key, value in own.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def get(address: str, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", headers=headers)) as answer:
            return answer.status, answer.read().decode(), answer.headers["content-type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["content-type"]


async def finish(llm: AsyncLLM, prompt: list[int], sampling: SamplingParams, **options) -> None:
    async for _ in llm.generate({"prompt_token_ids": prompt}, sampling, **options):
        pass


@pytest.fixture(scope="module")
def scraped(tiny_model, tiny_adapters):
    """The answers of the port of metrics of an engine that has done a little work."""

    async def work():
        async with AsyncLLM(tiny_model, memory="2MB", block_size=4, threads=1, adapters=dict(tiny_adapters)) as llm:
            name = next(iter(tiny_adapters))
            await finish(llm, [1, 2, 3], GREEDY, tenant="gold")
            await finish(llm, [1, 2, 3, 4], GREEDY, lora_request=name, tenant="iron")
            with pytest.raises(ValueError):
                await finish(llm, [], GREEDY)
            async with metrics_port(MetricsApp(llm.get_statistics), "127.0.0.1", 0) as address:
                ask = lambda *args, **headers: asyncio.to_thread(get, address, *args, **headers)  # noqa: E731
                plain, open_metrics = await ask(), await ask(Accept="application/openmetrics-text; version=1.0.0")
                others = [await ask("/health"), await ask("/nowhere")]
            text, _ = await render(await llm.get_statistics(), "vllm")
        return plain, open_metrics, others, text.decode(), name

    return asyncio.run(work())


def test_metrics_tell_what_happened(scraped):
    (status, text, content_type), *_, name = scraped
    assert status == 200 and content_type.startswith("text/plain")
    found = values(text)
    assert found["blora:prompt_tokens_total"] == 7
    assert found["blora:generation_tokens_total"] == 20
    assert found["blora:request_success_total{finished_reason=length}"] == 4
    assert found["blora:admission_rejections_total{reason=invalid_request}"] == 1
    assert found[f"blora:adapter_requests_total{{adapter={name}}}"] == 1
    assert found[f"blora:adapter_generation_tokens_total{{adapter={name}}}"] == 10
    assert found["blora:tenant_prompt_tokens_total{tenant=gold}"] == 3
    assert found["blora:tenant_requests_total{tenant=iron}"] == 1
    assert found["blora:adapters_resident"] == 1 and found["blora:adapter_uses_total"] == 2
    assert found["blora:serving"] == 1 and found["blora:num_requests_running"] == 0


def test_histograms_count_each_request_once(scraped):
    found = values(scraped[0][1])
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert found[f"blora:{name}_count"] == found[f"blora:{name}_bucket{{le=+Inf}}"] == 2
    assert found["blora:inter_token_latency_seconds_count"] == 2 * 2 * 4
    assert found["blora:request_prompt_tokens_sum"] == 7
    assert found["blora:request_params_max_tokens_bucket{le=5.0}"] == 2
    assert found["blora:request_params_n_bucket{le=1.0}"] == 0 and found["blora:request_params_n_bucket{le=2.0}"] == 2
    assert found["blora:iteration_tokens_total_sum"] >= 7 + 20 - 4
    assert found["blora:step_time_seconds_count"] == found["blora:iteration_tokens_total_count"] >= 10


def test_a_scraper_may_ask_for_open_metrics(scraped):
    status, text, content_type = scraped[1]
    assert status == 200 and content_type.startswith("application/openmetrics-text") and text.endswith("# EOF\n")


def test_other_paths(scraped):
    assert [status for status, _, _ in scraped[2]] == [200, 404]


def test_vllms_names_are_vllms_under_its_prefix(scraped):
    found = values(scraped[3])
    for family in FAMILIES:
        assert not family.is_vllm or any(name.startswith(f"vllm:{family.name}") for name in found), family.name
    (info,) = [name for name in found if name.startswith("vllm:lora_requests_info")]
    assert f"running_lora_adapters={scraped[4]}" in info and "max_lora=" in info


def test_who_reads_the_metrics_is_checked() -> None:
    def check(authorization: str | None) -> None:
        if authorization is None:
            raise Unauthenticated("no token")
        if authorization != "Bearer operator":
            raise PermissionDenied("no operator")

    async def ask() -> list[int]:
        async with metrics_port(MetricsApp(FakeLLM().get_statistics, check=check), "127.0.0.1", 0) as address:
            tokens = [{}, {"Authorization": "Bearer somebody"}, {"Authorization": "Bearer operator"}]
            return [(await asyncio.to_thread(get, address, "/metrics", **token))[0] for token in tokens]

    assert asyncio.run(ask()) == [401, 403, 200]


def test_before_the_start_there_is_nothing_to_tell(tiny_model):
    async def ask():
        llm = AsyncLLM(tiny_model)
        with pytest.raises(EngineUnavailable):
            await llm.get_statistics()
        async with metrics_port(MetricsApp(llm.get_statistics), "127.0.0.1", 0) as address:
            return [await asyncio.to_thread(get, address, path) for path in ("/metrics", "/health")]

    assert [status for status, _, _ in asyncio.run(ask())] == [503, 503]


def test_prompts_are_told_by_the_source_of_their_tokens(scraped):
    found = values(scraped[0][1])
    computed, cached = (
        found[f"blora:prompt_tokens_by_source_total{{source={source}}}"]
        for source in ("local_compute", "local_cache_hit")
    )
    assert computed + cached == found["blora:prefix_cache_queries_total"] > 0
    assert cached == found["blora:prefix_cache_hits_total"]


def test_names_of_vllm_are_shown_or_said_to_be_absent():
    assert ABSENT.keys().isdisjoint(family.name for family in FAMILIES)


def test_the_port_speaks_tls_where_it_is_given_certificates(tmp_path):
    authority = Authority()
    certificate, key = authority.identity("server").write(tmp_path)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cadata=authority.certificate.decode())

    def ask(url: str, context: ssl.SSLContext | None = None) -> int:
        with urllib.request.urlopen(f"{url}/health", context=context) as answer:
            return answer.status

    async def body():
        app = MetricsApp(FakeLLM().get_statistics)
        async with metrics_port(app, "127.0.0.1", 0, served) as address:
            assert await asyncio.to_thread(ask, f"https://{address}", trusting) == 200
            with pytest.raises(OSError):
                await asyncio.to_thread(ask, f"http://{address}")

    asyncio.run(body())
