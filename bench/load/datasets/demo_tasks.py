"""DemoTasks: prompts of the demo's four tasks with their answers, each for the adapter of its task, so that answers are
checked under load. The server has to have the demo's adapters under their tasks' names."""

import random
from dataclasses import dataclass

from ...demo.example import Example
from ...demo.tasks import TASKS, Task, held_out_examples
from .sample import Sample

EXAMPLES = 50  # of each task


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTasks:
    """is_chat: prompts are what a user says, for a server that has the chat template; else they are whole."""

    is_chat: bool = False

    def draw(self, count: int, seed: int) -> list[Sample]:
        source = random.Random(f"demo {seed}")
        examples = {name: held_out_examples(task, EXAMPLES) for name, task in TASKS.items()}
        names = source.choices(list(TASKS), k=count)
        return [self._sample(TASKS[name], source.choice(examples[name])) for name in names]

    def _sample(self, task: Task, example: Example) -> Sample:
        said = f"{task.instruction} {example.text}"
        return Sample(
            prompt=said if self.is_chat else task.prompt(example),
            max_tokens=task.max_tokens,
            adapter=task.name,
            expected=example.answer,
            check=task.name,
        )
