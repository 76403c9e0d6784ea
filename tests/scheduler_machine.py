"""Random operations on scheduler, block pool and adapter residency. Integrity and every KV cell are checked after
each."""

from fakes import CheckingRunner, make_request, make_scheduler
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from blora.scheduler import POLICIES, Fairness, FinishReason, Request, SamplingParams, Status, Step, StepWork

DIGESTS = ["one", "two", "three"]
BLOCK = 4
# There are few tokens, so that prompts often share prefixes.
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)


class SchedulerMachine(RuleBasedStateMachine):
    requests = Bundle("requests")
    are_copies_beside_rows = False

    def make_runner(self, *_: int) -> CheckingRunner:
        """Makes a runner for an arena of so many pages, of which so many are copied in a step."""
        return CheckingRunner(BLOCK)

    @initialize(
        num_pages=st.integers(8, 20),
        budget=st.integers(1, 16),
        policy=st.sampled_from(POLICIES),
        caching=st.booleans(),
        max_passed_over=st.sampled_from([0.0, 5.0, 40.0]),
        copied_pages=st.integers(1, 3),
        is_timed=st.booleans(),
        target_itl=st.sampled_from([None, None, 1e-4, 0.02]),
        is_blind=st.booleans(),
    )
    def start(
        self,
        num_pages: int,
        budget: int,
        policy: str,
        caching: bool,
        max_passed_over: float,
        copied_pages: int,
        is_timed: bool,
        target_itl: float | None,
        is_blind: bool,
    ) -> None:
        self.scheduler, self.residency, self.pool = make_scheduler(
            num_pages,
            BLOCK,
            budget,
            max_num_seqs=4,
            policy=policy,
            copied_pages_per_step=copied_pages,
            enable_prefix_caching=caching,
            fairness=Fairness(max_passed_over=max_passed_over),
            are_copies_beside_rows=self.are_copies_beside_rows,
            is_timed=is_timed,
            target_itl=target_itl,
            is_blind=is_blind,
        )
        self.runner = self.make_runner(num_pages, copied_pages)
        self.num_pages = num_pages
        self.num_requests = 0
        self.now = 0  # steps so far
        self.alive: dict[int, Request] = {}
        self.registered: set[str] = set()

    def _finished(self, request_id: int) -> None:
        self.alive.pop(request_id, None)

    @rule(
        target=requests,
        prompt=PROMPTS,
        max_tokens=st.integers(1, 6),
        uses=st.lists(st.sampled_from([(name, scale) for name in DIGESTS for scale in (1.0, 0.5)]), max_size=2),
        activation=st.sampled_from([0, 0, 3, 4, 6, 9]),
        urgency=st.integers(0, 2),
        salt=st.sampled_from([b"", b"", b"salt"]),
        tenant=st.sampled_from(["", "a", "b"]),
        weight=st.sampled_from([1.0, 3.0]),
        num_alone=st.sampled_from([0, 0, 0, 1, 4]),
        patience=st.none() | st.integers(0, 8),
    )
    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        uses: list[tuple[str, float]],
        activation: int,
        urgency: int,
        salt: bytes,
        tenant: str,
        weight: float,
        num_alone: int,
        patience: int | None,
    ) -> int:
        adapters = tuple(use for use in uses if use[0] in self.registered)
        activation = min(activation, len(prompt) - 1) if adapters else 0
        fields = {"adapters": adapters, "activation": activation, "priority": urgency, "cache_salt": salt}
        deadline = None if patience is None else float(self.now + patience)
        share = {"tenant": tenant, "weights": (weight, 1.0), "num_alone": num_alone}
        return self._add(make_request(self.num_requests, prompt, max_tokens, deadline=deadline, **fields, **share))

    @rule(target=requests, prompt=PROMPTS, stop=st.integers(0, 49))
    def add_stopping(self, prompt: list[int], stop: int) -> int:
        sampling = SamplingParams(temperature=0, max_tokens=6, stop_token_ids=list(range(stop)))
        return self._add(make_request(self.num_requests, prompt, 6, sampling=sampling))

    @rule(target=requests, leader=requests, index=st.integers(1, 3))
    def fork(self, leader: int, index: int) -> int:
        parent = self.alive.get(leader)
        if parent is None:
            return leader
        fork = make_request(
            self.num_requests,
            parent.prompt_token_ids,
            3,
            adapters=parent.adapters,
            activation=parent.activation,
            cache_salt=parent.cache_salt,
            sample_index=index,
            leader=leader,
        )
        if not {digest for digest, _ in parent.adapters} <= self.registered:
            return leader
        return self._add(fork)

    def _add(self, request: Request) -> int:
        needed = -(-(request.num_prompt_tokens + request.max_tokens) // BLOCK)
        if needed + self.residency.num_pages(request.adapters) <= self.num_pages:
            self.num_requests += 1
            self.alive[request.request_id] = request
            self.scheduler.add(request)
        return request.request_id

    @rule(request_id=consumes(requests))
    def abort(self, request_id: int) -> None:
        self.scheduler.finish(request_id)
        self._finished(request_id)

    def _schedule(self) -> Step:
        """Schedules a step, after which no request is left whose deadline has passed. A rejected request must find no
        room even beside the pinned adapters alone."""
        self.now += 1
        accepted = [request for request in self.alive.values() if request.status is not Status.FINISHED]
        needs = [self._num_pages_beside_pins(request) for request in accepted]
        step = self.scheduler.schedule(float(self.now))
        for request, num_needed in zip(accepted, needs, strict=True):
            is_too_late = request.deadline is not None and request.deadline <= self.now
            assert not is_too_late or request.status is Status.FINISHED
            if request.status is Status.FINISHED and not is_too_late:
                assert num_needed + self.residency.num_pinned_pages > self.num_pages
        alone = [row.request_id for row in step.rows if self.alive[row.request_id].num_alone]
        assert not alone or len(step.rows) == 1, f"{alone} have company"
        return step

    def _num_pages_beside_pins(self, request: Request) -> int:
        others = [use for use in request.adapters if not self.residency.is_pinned(use[0])]
        return -(-request.num_tokens // BLOCK) + self.residency.num_pages(others)

    @rule(seconds=st.sampled_from([0.0, 1e-5, 1e-3, 0.02, 3.0]))
    def step(self, seconds: float = 0.02) -> None:
        step = self._schedule()
        assert step.num_tokens <= self.scheduler.limits.max_num_batched_tokens
        self._check_time(step)
        self.scheduler.note_seconds(step, seconds / 10, seconds)
        self.runner.begin_copies(step)
        results = self.runner.execute(step)
        self.runner.finish_copies()
        for update in self.scheduler.update(step, results):
            if update.finish_reason is not None:
                self._finished(update.request_id)

    def _check_time(self, step: Step) -> None:
        """Rows that decode wait for no more of prompts than their pace leaves, or a block; last tokens go along."""
        num_pages = sum(map(len, step.adapter_pages.values()))
        assert step.work == StepWork.total([StepWork(1, num_adapter_pages=num_pages), *(row.work for row in step.rows)])
        decoding = [row for row in step.rows if row.num_output_tokens and row.num_new_tokens == 1]
        prompts = [row for row in step.rows if row not in decoding]
        num_chunked = sum(row.num_new_tokens for row in prompts if row.num_new_tokens > 1)
        if not self.scheduler.limits.is_timed or not decoding or num_chunked <= BLOCK:
            return
        costs, target = self.scheduler.step_time.costs, self.scheduler.limits.target_itl
        num_pages = self.residency.num_pages(use for row in decoding for use in row.adapters)
        alone = StepWork.total([StepWork(1, num_adapter_pages=num_pages), *(row.work for row in decoding)])
        limit = 2 * costs.seconds(alone) if target is None else target
        one_token_rows = StepWork.total([StepWork(), *(row.work for row in prompts if row.num_new_tokens == 1)])
        assert costs.seconds(step.work) <= limit + costs.seconds(one_token_rows) + 1e-9

    @rule()
    def step_that_fails(self) -> None:
        """A step fails: its plan stands, and nothing is committed."""
        step = self._schedule()
        self.runner.begin_copies(step)
        self.runner.finish_copies()
        for update in self.scheduler.update(step, {}):
            self._finished(update.request_id)

    @rule(request_id=requests)
    def fail(self, request_id: int) -> None:
        self.scheduler.finish(request_id, FinishReason.ERROR)
        self._finished(request_id)

    @rule(also_running=st.booleans())
    def reset_prefix_cache(self, also_running: bool) -> None:
        is_empty = self.scheduler.reset_prefix_cache(also_running)
        assert is_empty or not also_running

    @rule(digest=st.sampled_from(DIGESTS))
    def register(self, digest: str) -> None:
        self.residency.register(digest, 1 + 2 * DIGESTS.index(digest))
        self.registered.add(digest)

    @rule(digest=st.sampled_from(DIGESTS))
    def unregister(self, digest: str) -> None:
        self.residency.unregister(digest)
        self.registered.discard(digest)

    @precondition(lambda self: self.registered)
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.registered)))
        if self.residency.is_pinned(digest):
            self.residency.unpin(digest)
        else:
            self.scheduler.pin(digest)

    @precondition(lambda self: self.registered)
    @rule(data=st.data())
    def warm(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.registered)))
        if self.residency.warm(digest):
            assert self.residency.is_resident(digest) or self.residency.is_copying

    @rule()
    def step_that_is_interrupted(self) -> None:
        """A step is interrupted: neither its copies nor its rows run, and it is not committed."""
        self._schedule()

    @invariant()
    def has_integrity(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        """Ends all accepted requests; then nothing may hold a page."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.alive, f"{len(self.alive)} requests never ended"
        for digest in DIGESTS:
            self.residency.unregister(digest)
        self.scheduler.check_integrity()
        assert self.pool.num_free == self.num_pages
        assert not any(self.residency.is_known(digest) for digest in DIGESTS)
