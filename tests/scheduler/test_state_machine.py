"""The scheduler under random operations."""

from hypothesis import settings
from scheduler_machine import SchedulerMachine

TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
