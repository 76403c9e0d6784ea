"""Note of a developer -> a commit message in the conventional style, `type(scope): what it does`."""

from random import Random

from .example import Example

SCOPES = (
    "login",
    "checkout",
    "search",
    "cart",
    "profile",
    "settings",
    "upload",
    "billing",
    "dashboard",
    "chat",
    "inbox",
    "calendar",
    "reports",
    "gallery",
    "wishlist",
    "signup",
)
OPENERS = ("", "", "", "Today ", "Yesterday ", "This morning ", "After the review ", "For the release ", "At last ")
CLOSERS = ("", "", "", " It took all day.", " The team likes it.", " Nobody had noticed it.", " Please merge it soon.")

FAULTS = ("crash", "freeze", "blank screen", "endless loop", "memory leak", "wrong total", "layout shift", "timeout")
CAUSES = (
    "on empty input",
    "on slow networks",
    "on old phones",
    "after a reload",
    "after logout",
    "with long names",
    "with large files",
    "in dark mode",
    "in private windows",
)
FEATURES = (
    "dark mode",
    "csv export",
    "keyboard shortcuts",
    "voice input",
    "a progress bar",
    "an undo button",
    "email alerts",
    "a date filter",
    "drag and drop",
    "a print view",
    "saved filters",
    "a help panel",
    "offline support",
    "a dark logo",
)
DATA = (
    "query results",
    "user photos",
    "thumbnails",
    "price lists",
    "access tokens",
    "translations",
    "currency rates",
    "page fragments",
    "font files",
    "unread counts",
)
LESSONS = (
    "undo a change",
    "export data",
    "share a link",
    "report a bug",
    "invite a friend",
    "change the language",
    "restore a backup",
    "print a receipt",
    "mute alerts",
    "archive old items",
)
PARTS = (
    "error messages",
    "date parsing",
    "retry logic",
    "input checks",
    "access rules",
    "page titles",
    "price rounding",
    "sort order",
    "cache expiry",
    "rate limits",
)

# Commit type: the notes, then the message after `type(scope): `, both with {scope} and {what}.
STYLES: dict[str, tuple[tuple[str, ...], str]] = {
    "fix": (
        (
            "I got rid of the {what} in the {scope}.",
            "the {scope} had a {what}, I repaired that.",
            "I solved the {what} that people saw in the {scope}.",
            "the {what} in the {scope} is gone now.",
        ),
        "prevent {what}",
    ),
    "feat": (
        (
            "I built {what} for the {scope}.",
            "the {scope} now has {what}.",
            "people can now use {what} in the {scope}.",
            "I put {what} into the {scope}, a new thing that users asked for.",
        ),
        "add {what}",
    ),
    "perf": (
        (
            "I made the {scope} faster by caching {what}.",
            "the {scope} keeps {what} in a cache now and is twice as fast.",
            "to speed up the {scope}, {what} are cached now.",
            "the {scope} was slow, so I cached {what}.",
        ),
        "cache {what}",
    ),
    "docs": (
        (
            "I wrote down how to {what} in the {scope} guide.",
            "the {scope} manual now tells how to {what}.",
            "I added a page to the {scope} guide on how to {what}.",
            "people kept asking how to {what}, so the {scope} readme says it.",
        ),
        "explain how to {what}",
    ),
    "test": (
        (
            "I wrote unit tests for the {what} of the {scope}.",
            "the {what} of the {scope} had no tests, now they do.",
            "I now check the {what} of the {scope} in our test suite.",
        ),
        "cover {what}",
    ),
    "refactor": (
        (
            "I moved the {what} of the {scope} into a module, nothing behaves differently.",
            "the {what} of the {scope} have their own file now, same behaviour.",
            "I cleaned up the {scope} code by pulling the {what} out.",
        ),
        "extract {what}",
    ),
}


def pick_object(rng: Random, kind: str) -> str:
    if kind == "fix":
        return f"{rng.choice(FAULTS)} {rng.choice(CAUSES)}"
    objects = {"feat": FEATURES, "perf": DATA, "docs": LESSONS, "test": PARTS, "refactor": PARTS}
    return rng.choice(objects[kind])


def make_commit(rng: Random) -> Example:
    kind, scope = rng.choice(tuple(STYLES)), rng.choice(SCOPES)
    notes, message = STYLES[kind]
    what = pick_object(rng, kind)
    note = rng.choice(OPENERS) + rng.choice(notes).format(scope=scope, what=what)
    answer = f"{kind}({scope}): {message.format(what=what)}"
    return Example(note[0].upper() + note[1:] + rng.choice(CLOSERS), answer, answer)
