"""Scheduler: plans each step and commits its results. The only place where a Request changes.

A step is plan -> execute -> commit. `schedule` plans: it may admit, allocate, evict and preempt, and these changes
stand whether or not the step runs. `update` commits: it alone advances requests, so a failed step can be run again
without the row that made it fail.
"""

import bisect
from collections.abc import Mapping, Sequence

from .alone import AloneTurns
from .block_pool import BlockPool
from .deadlines import Deadlines
from .fair_share import DEFAULT_FAIRNESS, Fairness
from .forecast import MemoryForecast
from .kv_manager import KVManager
from .pace import Pace
from .prompt_turns import MAX_TENANTS, PromptTurns
from .request import FinishReason, Request, Status
from .residency import AdapterResidency
from .step import CacheCounts, Limits, RowResult, RowUpdate, ScheduledRow, Step
from .step_plan import StepPlan
from .step_report import StepReport
from .step_time import StepTime, StepWork
from .waiting_queue import WaitingQueue


class Scheduler:
    def __init__(
        self,
        limits: Limits,
        pool: BlockPool,
        kv: KVManager,
        residency: AdapterResidency,
        policy: str = "fair",
        fairness: Fairness = DEFAULT_FAIRNESS,
    ) -> None:
        """policy: one of POLICIES, see WaitingQueue."""
        self.limits = limits
        self.num_preemptions = 0
        self._pool = pool
        self._kv = kv
        self._residency = residency
        self._requests: dict[int, Request] = {}  # every unfinished request
        self._waiting = WaitingQueue(policy, fairness)
        self._running: list[Request] = []  # in service order
        self._alone = AloneTurns()
        self._prompts = PromptTurns(self._waiting.party)
        self._followers: dict[int, list[Request]] = {}  # leader -> samples that wait for its prompt's blocks
        self._deadlines = Deadlines(lambda request: request.deadline)
        self._unbegun = Deadlines(lambda request: request.begin_by)
        self._ended: list[RowUpdate] = []  # news of requests that ended while a step was planned
        self.in_hand: Request | None = None  # the request whose turn it is, while a step is planned or committed
        self._num_accepted = 0
        self.step_time = StepTime()
        self._forecast = MemoryForecast(kv.block_size)
        self._pace = Pace(self.step_time, kv.block_size, limits.is_timed, limits.target_itl)
        self._launched = StepWork()  # work of steps since the last one that gave a token
        self._launched_seconds = 0.0

    # Requests come and go.

    def add(self, request: Request) -> None:
        """Accepts a validated request. Raises KeyError unless its adapters are registered."""
        request.arrival = self._num_accepted
        self._num_accepted += 1
        self._residency.expect(request.adapters)
        self._requests[request.request_id] = request
        self._deadlines.add(request)
        self._unbegun.add(request)
        leader = self._requests.get(request.leader) if request.leader is not None else None
        is_shareable = self._kv.is_caching and leader is not None
        if leader is not None and is_shareable and leader.num_computed_tokens < leader.num_prompt_tokens:
            self._followers.setdefault(leader.request_id, []).append(request)
        else:
            self._waiting.push(request)

    def finish(self, request_id: int, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        """Ends a request in any phase and gives back all that it holds. Returns None if there is no such request, so a
        second call is allowed."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return None
        if reason is FinishReason.ERROR:
            self._kv.retract(request)
        self._deadlines.forget(request)
        self._unbegun.forget(request)
        self._forecast.note_end(request, self._running)
        self._waiting.forget(request)
        self._leave(request)
        self._residency.forget(request.adapters)
        request.status = Status.FINISHED
        self._release_followers(request_id)
        return request

    def _release_followers(self, leader_id: int) -> None:
        for follower in self._followers.pop(leader_id, ()):
            if follower.status is Status.WAITING and follower.request_id in self._requests:
                self._waiting.push(follower)

    def _leave(self, request: Request, is_coming_back: bool = False) -> None:
        """The one place where a running request gives back its blocks and its adapters."""
        if request.status is Status.RUNNING:
            self._running.remove(request)
            self._kv.release(request, is_coming_back)
            self._residency.release(request.adapters)

    def reset_prefix_cache(self, also_running: bool) -> bool:
        """Empties the prefix cache. also_running: nothing that running requests have computed can be found, either;
        they go on with the blocks that they hold. Returns whether the prefix cache is empty now."""
        return self._pool.forget_blocks(also_running)

    def pin(self, digest: str) -> bool:
        """Keeps an adapter resident. Returns False when there is no room now, or when an accepted request would no
        longer fit: no accepted request fails because of a pin."""
        return self._fits_with_pin(digest) and self._residency.pin(digest)

    def _fits_with_pin(self, digest: str) -> bool:
        num_pinned = self._residency.num_pinned_pages
        if not self._residency.is_pinned(digest):
            num_pinned += self._residency.num_pages([(digest, 1.0)])
        needs = [self._num_pages_at_most(request, digest) for request in self._requests.values()]
        return num_pinned + max(needs, default=1) <= self._pool.num_pages

    def _num_pages_at_most(self, request: Request, pinned: str) -> int:
        """Returns the number of pages that a request can come to need beside the pinned adapters."""
        others = [use for use in request.adapters if use[0] != pinned and not self._residency.is_pinned(use[0])]
        num_tokens = request.num_prompt_tokens + request.max_tokens
        return self._kv.blocks_for(num_tokens) + self._residency.num_pages(others)

    # Plan.

    def schedule(self, now: float = 0.0) -> Step:
        """Plans a step within the budget of tokens and time: ends requests whose deadline has passed and those that
        have waited too long, continues running ones, those that need one token first, then admits waiting ones.

        now: seconds by the caller's clock; the scheduler has none.
        """
        self.in_hand = None
        for request in self._deadlines.passed(now):
            self._end(request, FinishReason.DEADLINE)
        for request in self._unbegun.passed(now):
            self._end(request, FinishReason.UNBEGUN)
        plan = self._begin_plan(now)
        for request in [request for request in self._running if request.num_missing_tokens == 1]:
            self._schedule_row(request, plan)
        self._schedule_prompts(plan)
        while plan.has_room and not plan.is_alone and self._admit_head(plan):
            pass
        seconds = self._pace.seconds(plan.work) if plan.rows else None
        num_copied_at_most = self._residency.copy_budget.num_pages(seconds)
        self._prefetch(num_copied_at_most)
        copies = self._residency.plan_copies(num_copied_at_most)
        for request in list(self._running):  # requests whose last adapter page this step copies
            if request.request_id not in plan.rows:
                self._schedule_row(request, plan)
        pages = {digest: self._residency.page_table(digest) for digest in plan.digests}
        return Step(copies, list(plan.rows.values()), pages, plan.work, is_full=not plan.has_room)

    def _begin_plan(self, now: float) -> StepPlan:
        self._residency.begin_plan()
        alone = self._alone.next(self._running, has_others=bool(self._waiting))
        return StepPlan(self.limits, self._pace, now, self._residency.num_pages, alone)

    def _schedule_prompts(self, plan: StepPlan) -> None:
        """Shares what the rows that decode leave of the step among the tenants whose prompts are or can be computed."""
        if not plan.is_alone and plan.num_left:
            self._admit_absent_tenants(plan)
        prompts = [request for request in self._running if request.request_id not in plan.rows]
        if prompts:
            plan.limit_prompts()
            self._prompts.share(prompts, lambda request: self._schedule_row(request, plan))

    def _schedule_row(self, request: Request, plan: StepPlan) -> int:
        """Adds the request's next tokens to the plan, unless the request has to wait or is preempted. Returns their
        number."""
        self.in_hand = request
        can_run = request.status is Status.RUNNING and plan.admits(request)
        if not can_run or not self._residency.is_ready(request.adapters):
            return 0
        num_new = plan.num_new_tokens(request)
        if not num_new or not self._make_room(request, request.num_computed_tokens + num_new, plan):
            return 0
        plan.add(request, num_new, self._kv.block_table(request))
        return num_new

    def _make_room(self, request: Request, num_tokens: int, plan: StepPlan) -> bool:
        """Extends the request's blocks, preempting requests until they fit. Returns False when the request itself was
        preempted."""
        while not self._kv.extend(request, num_tokens):
            if self._residency.cancel_prefetches() or self._residency.cancel_warming():
                continue
            victim = self._victim()
            self._preempt(victim, plan)
            if victim is request:
                return False
        return True

    def _victim(self) -> Request:
        """Returns the running request that makes way for others: of the last in service order the one that loses
        least. An overdue request loses its turn last of its priority, the oldest one last of all."""
        last = self._running[-1]
        if last.is_overdue:
            return last
        equals = [
            request
            for request in self._running
            if self._waiting.urgency(request) == self._waiting.urgency(last) and not request.is_overdue
        ]
        return min(equals, key=lambda request: (self._kv.num_lost_tokens(request), -request.arrival))

    def _preempt(self, request: Request, plan: StepPlan) -> None:
        """Takes back all that a request holds. The request waits again, first in line, and recomputes all but its
        cached blocks: who waits behind it would only take these from it."""
        plan.drop(request)
        self._leave(request, is_coming_back=True)
        request.is_overdue = True
        request.status = Status.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.push(request)

    def _admit_absent_tenants(self, plan: StepPlan) -> None:
        """Admits a request of each waiting tenant that has no prompt that is being computed, so that it gets its turns
        beside the prompts of others, however long these are."""
        present = {self._waiting.party(request) for request in self._running if request.num_missing_tokens > 1}
        while len(present) < MAX_TENANTS:
            head = self._choose(self._waiting.choices(present))
            if head is None or not self._has_seat(head) or not self._take_holdings(head):
                return
            self._admit(head, plan)
            present.add(self._waiting.party(head))

    def _has_seat(self, request: Request) -> bool:
        if len(self._running) >= self.limits.max_num_seqs:
            return False
        return self._pace.has_seat(self._running, request, self._residency.num_pages)

    def _admit(self, request: Request, plan: StepPlan) -> None:
        """Has a waiting request run that has taken its holdings."""
        self._waiting.take(request)
        if not request.was_admitted:  # tokens that are computed again were charged before
            self._waiting.charge_input(request, request.num_prompt_tokens - request.num_cached_tokens)
            request.was_admitted = True
            self._begin(request)
        request.status = Status.RUNNING
        request.scheduled_ts = request.scheduled_ts or plan.now
        bisect.insort(self._running, request, key=self._waiting.order)

    def _begin(self, request: Request) -> None:
        """Notes that a request waits no more to be begun, nor do the other samples of its prompt."""
        others = self._requests.values() if request.sampling.n > 1 else ()
        for sample in (request, *(other for other in others if other.leader == request.request_id)):
            self._unbegun.forget(sample)
            sample.begin_by = None

    def _admit_head(self, plan: StepPlan) -> bool:
        """Admits the next waiting request, or makes way for it. Returns False when the step can admit no other one."""
        head = self._choose(self._waiting.choices())
        if head is None or not self._has_seat(head):
            return False
        if self._take_holdings(head):
            self._admit(head, plan)
            self._schedule_row(head, plan)
        elif self._is_less_urgent(head) and self._will_have_room(head):
            self._preempt(self._victim(), plan)
        elif self._running or self._residency.is_warming:  # running requests end, and warm adapters can be evicted
            return False
        else:
            self._reject(head)
        return True

    def _choose(self, choices: Sequence[Request]) -> Request | None:
        """Returns the next of some requests in order of service. Where its adapter could only be copied by evicting
        something, one of the next few requests whose adapter is resident goes first: its adapter might be evicted
        otherwise, and would have to be copied again."""
        if not choices:
            return None
        first, *others = choices
        if not others or not self._residency.must_evict(first.adapters):
            return first
        return next((request for request in others if self._residency.has_pages(request.adapters)), first)

    def _is_less_urgent(self, request: Request) -> bool:
        """Whether a running request is less urgent than this one."""
        return bool(self._running) and self._waiting.urgency(self._running[-1]) > self._waiting.urgency(request)

    def _has_room(self, request: Request) -> bool:
        num_needed = self._kv.num_needed(request) + self._residency.num_needed(request.adapters)
        return num_needed + len(self._running) <= self._pool.num_free

    def _will_have_room(self, request: Request) -> bool:
        """Whether a request and those that it cannot displace are expected to fit until they end."""
        urgency = self._waiting.urgency(request)
        others = [other for other in self._running if self._waiting.urgency(other) <= urgency]
        if not others:
            return True
        num_for_adapters = self._residency.num_held_pages
        num_for_blocks = self._pool.num_pages - self._pool.num_free - num_for_adapters
        num_shared = self._kv.num_entries - num_for_blocks + self._kv.num_held(request)
        num_new = self._residency.num_needed(request.adapters)
        num_blocks = self._forecast.num_blocks([*others, request]) - num_shared
        return num_blocks + num_for_adapters + num_new <= self._pool.num_pages

    def _prefetch(self, num_copied_at_most: int) -> None:
        """Looks ahead in the queue and begins to copy the adapters of requests that wait only for a seat or for tokens
        of a step. Where a request waits for memory, pages taken ahead would be missing elsewhere.

        num_copied_at_most: pages that this step may copy."""
        for request in self._waiting.upcoming():
            if not request.adapters or self._residency.has_pages(request.adapters):
                continue
            if self._residency.num_pages_to_copy >= num_copied_at_most or not self._has_room(request):
                return
            for digest, _ in request.adapters:
                self._residency.prefetch(digest)

    def _take_holdings(self, request: Request) -> bool:
        """Takes blocks for all known tokens and the adapters' pages, together or not at all."""
        self.in_hand = request
        # Room for one more block for each running request keeps these from preempting a request that was only just
        # admitted. Counting first keeps a request that does not fit from evicting other pages at every step.
        if not self._has_room(request) and self._residency.cancel_prefetches():
            return self._take_holdings(request)
        if not self._has_room(request) or not self._will_have_room(request):
            return False
        if not self._residency.acquire(request.adapters):
            return False
        num_found = self._kv.admit(request)
        if num_found is None:
            self._residency.release(request.adapters)
            return False
        request.num_computed_tokens = num_found
        if not request.was_admitted:
            request.num_cached_tokens = num_found
        return True

    def _reject(self, request: Request) -> None:
        """Fails a request that does not fit although only pinned adapters hold pages. It will never fit and must not
        block the requests behind it."""
        error = "the request does not fit beside the pinned adapters: shorten it, or unpin an adapter"
        self._end(request, FinishReason.ERROR, error)

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> None:
        """Ends a request while a step is planned; `update` tells of it."""
        self.finish(request.request_id, reason)
        self._ended.append(
            RowUpdate(
                request_id=request.request_id,
                finish_reason=reason,
                num_cached_tokens=request.num_cached_tokens,
                num_preemptions=request.num_preemptions,
                scheduled_ts=request.scheduled_ts,
                error=error,
            )
        )

    def fail_copies(self, digest: str) -> bool:
        """Fails the requests that hold an adapter whose copy has failed, and gives back its pages. A request that comes
        to hold it later has it copied again. Returns whether a pin has ended with it."""
        for request in [request for request in self._running if digest in dict(request.adapters)]:
            self._end(request, FinishReason.ERROR, f"adapter {digest[:12]} could not be copied into the arena")
        return self._residency.give_up(digest)

    # Commit.

    def update(self, step: Step, results: Mapping[int, RowResult]) -> list[RowUpdate]:
        """Advances the step's requests by their results and returns the news. Rows without a result, and requests that
        ended meanwhile, are left alone."""
        self.in_hand = None
        updates, self._ended = self._ended, []
        self._residency.commit_copies(step.copies)
        for row in step.rows:
            request = self._requests.get(row.request_id)
            result = results.get(row.request_id)
            if request is not None and result is not None and request.status is Status.RUNNING:
                self.in_hand = request
                updates.append(self._advance(request, row, result))
        return [update for update in updates if update.is_news]

    def _advance(self, request: Request, row: ScheduledRow, result: RowResult) -> RowUpdate:
        if result.error is not None:
            self.finish(request.request_id, FinishReason.ERROR)
            return RowUpdate(request.request_id, finish_reason=FinishReason.ERROR, error=result.error)
        request.num_computed_tokens = row.end
        if row.num_new_tokens > 1:
            self._prompts.charge(request, row.num_new_tokens)
        self._kv.publish(request)
        if request.num_computed_tokens >= request.num_prompt_tokens:
            self._release_followers(request.request_id)
        token_id = result.token_id
        reason = FinishReason.STOP if result.is_complete else None
        if token_id is not None:
            reason = self._append(request, token_id)
        if reason is not None:
            self.finish(request.request_id, reason)
        # Results are for the positions after row.start; those reported before a preemption are left out.
        prompt_logprobs = result.prompt_logprobs[max(request.num_told_prompt_logprobs - row.start, 0) :]
        request.num_told_prompt_logprobs += len(prompt_logprobs)
        is_stopped = reason is FinishReason.STOP
        is_complete = is_stopped and token_id not in request.stop_token_ids
        return RowUpdate(
            request_id=request.request_id,
            token_ids=() if token_id is None else (token_id,),
            logprobs=() if result.logprob is None else (result.logprob,),
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            stop_token_id=None if token_id is None or not is_stopped or is_complete else request.stop_reason(token_id),
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
            scheduled_ts=request.scheduled_ts,
            is_complete=is_complete,
        )

    def _append(self, request: Request, token_id: int) -> FinishReason | None:
        """Appends a sampled token. Returns the reason if the request is finished, None if it goes on."""
        request.token_ids.append(token_id)
        request.num_alone = max(request.num_alone - 1, 0)
        self._waiting.charge_output(request, 1)
        if token_id in request.stop_token_ids:  # such a token cannot be drawn before min_tokens
            return FinishReason.STOP
        if request.matcher is not None and request.matcher.take(token_id):
            return FinishReason.STOP
        return FinishReason.LENGTH if request.num_output_tokens >= request.max_tokens else None

    def note_seconds(self, step: Step, copying: float, computing: float) -> None:
        """Notes a step's time for copies and for rows, in seconds. StepTime learns from it how long steps take, and
        KeepRule the cost of bringing evicted things back."""
        self._residency.note_copy_seconds(step.copies, copying)
        self._pool.costs.note_copies(sum(len(copy.page_ids) for copy in step.copies), copying)
        self._note_computing(step, computing)
        self._pool.costs.block = self._kv.block_size * self.step_time.costs.prompt_token_seconds

    def _note_computing(self, step: Step, seconds: float) -> None:
        """A backend may compute a step that gives no token while the next one is planned, so only the time up to the
        next token is measured."""
        if not step.rows:
            return
        self._launched = StepWork.total((self._launched, step.work))
        self._launched_seconds += seconds
        if step.is_sampled:
            self.step_time.note(self._launched, self._launched_seconds)
            self._launched, self._launched_seconds = StepWork(), 0.0

    # Facts.

    def report(self, step: Step, seconds: float) -> StepReport:
        """Tells of a step before it is committed. seconds: of the whole step."""
        prompts = [row.work for row in step.rows if row.start < row.num_prompt_tokens]
        return StepReport(
            seconds=seconds,
            num_decoding_rows=len(step.rows) - len(prompts),
            prompt_seconds=self.step_time.costs.seconds(StepWork.total([StepWork(), *prompts])),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_tokens=sum(row.num_new_tokens for row in step.rows),
            is_cut=step.is_full and self._has_more_than(step),
        )

    def _has_more_than(self, step: Step) -> bool:
        """Whether there are tokens to compute that a step did not take, though there may be memory for them."""
        planned = {row.request_id: row.num_new_tokens for row in step.rows}
        ready = (request for request in self._running if self._residency.is_ready(request.adapters))
        is_left = (request.num_missing_tokens > planned.get(request.request_id, 0) for request in ready)
        return bool(self._waiting) or any(is_left)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._requests) - len(self._running)

    @property
    def num_pages(self) -> int:
        """Number of pages for requests and adapters together."""
        return self._pool.num_pages

    @property
    def num_free_pages(self) -> int:
        return self._pool.num_free

    @property
    def counts(self) -> CacheCounts:
        """The counts since the start."""
        return CacheCounts(
            num_prompt_tokens=self._kv.num_prefix_queries,
            num_cached_tokens=self._kv.num_prefix_hits,
            num_adapter_uses=self._residency.num_hits + self._residency.num_misses,
            num_adapter_hits=self._residency.num_hits,
            num_copied_pages=self._residency.num_copied_pages,
            num_evicted_blocks=self._pool.num_evicted_blocks,
            num_evicted_adapters=self._pool.num_evicted_adapters,
            num_preemptions=self.num_preemptions,
            copy_seconds=self._residency.copy_seconds,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._requests) or self._residency.is_copying or bool(self._ended)

    def check_integrity(self) -> None:
        """Raises RuntimeError unless every page, table and adapter reference has exactly one owner, and every request
        stands in one place."""
        self._waiting.check_integrity()
        self._deadlines.check_integrity(self._requests.values())
        self._unbegun.check_integrity(self._requests.values())
        owned = [*self._kv.owned_pages(), *self._residency.owned_pages()]
        self._pool.check_integrity(owned, self._residency.in_use())
        accepted = (use for request in self._requests.values() for use in request.adapters)
        self._residency.check_integrity(accepted, (use for request in self._running for use in request.adapters))
        if self._kv.num_tables != len(self._running):
            raise RuntimeError(f"{self._kv.num_tables} block tables for {len(self._running)} running requests")
        running = {request.request_id for request in self._running}
        followers = {request.request_id for followers in self._followers.values() for request in followers}
        for request in self._requests.values():
            is_waiting = request in self._waiting
            is_running = request.request_id in running
            is_following = request.request_id in followers and not is_waiting and not is_running
            is_right = is_running if request.status is Status.RUNNING else is_waiting or is_following
            if not is_right or is_running and is_waiting:
                raise RuntimeError(f"request {request.request_id} is {request.status}, but stands in another place")
