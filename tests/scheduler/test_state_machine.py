"""The scheduler under random operations."""

import pytest
from hypothesis import settings
from scheduler_machine import SchedulerMachine

TestSchedulerMachine = pytest.mark.grid(SchedulerMachine.TestCase)
TestSchedulerMachine.settings = settings(stateful_step_count=60)
