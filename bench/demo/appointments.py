"""Sentence about an appointment -> a JSON object with the keys event, with, day and time, as in 8:30 pm."""

import json
from random import Random

from .example import Example

EVENTS = (
    "lunch",
    "dinner",
    "breakfast",
    "coffee",
    "budget review",
    "job interview",
    "piano lesson",
    "dentist visit",
    "project kickoff",
    "phone call",
    "design workshop",
    "tennis match",
    "sales meeting",
    "code review",
    "haircut",
    "school meeting",
    "planning session",
    "product demo",
)
PEOPLE = (
    "Maria",
    "Tom",
    "Aisha",
    "Kenji",
    "Olga",
    "Luis",
    "Priya",
    "Hannah",
    "Omar",
    "Clara",
    "Pavel",
    "Mr. Novak",
    "Mrs. Silva",
    "Dr. Weber",
    "Dr. Okafor",
    "Professor Lind",
    "Nina",
    "Samuel",
    "Ingrid",
    "Mateo",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")

TEMPLATES = (
    "{event} with {person} on {day} at {time}",
    "on {day} at {time} I have a {event} with {person}",
    "please book a {event} with {person} for {day}, {time}",
    "{person} and I agreed on a {event}, {day} at {time}",
    "don't forget the {event} with {person} this {day} at {time}",
    "{person} can do {day} at {time} for the {event}",
    "{day}, {time}: {event} with {person}",
    "let's meet {person} for the {event} next {day} at {time}",
    "the {event} with {person} was moved to {day} at {time}",
    "{person} asked for a {event} at {time} on {day}",
)
CLOSERS = (
    "",
    "",
    "",
    " Bring the slides.",
    " I will be there early.",
    " It takes an hour.",
    " Remind me the day before.",
)


def spoken_time(rng: Random, hour: int, minute: int) -> str:
    """Returns a time of day in one of the ways in which people write it."""
    half = "am" if hour < 12 else "pm"
    short = hour % 12 or 12
    forms = [f"{short}:{minute:02} {half}", f"{short}.{minute:02}{half}"]
    if minute == 0:
        forms += [f"{short} {half}", f"{short}{half}"]
    if minute == 30:
        part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
        forms.append(f"half past {HOURS[hour % 12]} in the {part}")
    return rng.choice(forms)


def written_time(hour: int, minute: int) -> str:
    """Returns a time of day in the one form of the answers."""
    return f"{hour % 12 or 12}:{minute:02} {'am' if hour < 12 else 'pm'}"


def make_appointment(rng: Random) -> Example:
    event, person, day = rng.choice(EVENTS), rng.choice(PEOPLE), rng.choice(DAYS)
    hour, minute = rng.randint(7, 20), rng.choice((0, 15, 30, 45))
    fields = {"event": event, "with": person, "day": day, "time": written_time(hour, minute)}
    sentence = rng.choice(TEMPLATES).format(event=event, person=person, day=day, time=spoken_time(rng, hour, minute))
    text = sentence[0].upper() + sentence[1:] + "." + rng.choice(CLOSERS)
    answer = json.dumps(fields)
    return Example(text, answer, answer)


def is_same_json(example: Example, output: str) -> bool:
    """Returns whether the output is one JSON value and nothing else, with exactly the right keys and values."""
    try:
        return bool(json.loads(output) == json.loads(example.answer))
    except ValueError:
        return False
