"""Question about a shop -> SQL over a fixed schema.

orders(customer, city, product, status, total)
products(name, category, price, stock)
"""

from random import Random

from .example import Example

CITIES = (
    "Berlin",
    "Lisbon",
    "Oslo",
    "Madrid",
    "Prague",
    "Dublin",
    "Vienna",
    "Athens",
    "Warsaw",
    "Paris",
    "Rome",
    "Kyiv",
)
ITEMS = (
    "lamp",
    "tent",
    "mixer",
    "drone",
    "guitar",
    "kettle",
    "camera",
    "sofa",
    "bicycle",
    "printer",
    "watch",
    "heater",
)
STATUSES = ("pending", "shipped", "delivered", "cancelled", "returned")
CATEGORIES = ("toys", "books", "garden", "kitchen", "sports", "music", "office", "beauty", "pets", "travel")

ORDER_QUESTIONS: dict[str, tuple[str, ...]] = {
    "COUNT(*)": ("How many {what} are there?", "Count the {what}.", "Give me the number of {what}."),
    "SUM(total)": (
        "What is the total value of {what}?",
        "How much are all {what} worth together?",
        "Sum up the {what}.",
    ),
    "AVG(total)": ("What is the average value of {what}?", "How much are {what} worth on average?"),
    "MAX(total)": ("What is the biggest of the {what} worth?", "Give me the highest value among {what}."),
    "customer": ("Which customers have {what}?", "List the customers with {what}.", "Who has {what}?"),
}
PRODUCT_QUESTIONS: dict[str, tuple[str, ...]] = {
    "COUNT(*)": ("How many {what} do we sell?", "Count the {what}.", "Give me the number of {what}."),
    "AVG(price)": ("What is the average price of {what}?", "What do {what} cost on average?"),
    "MAX(price)": ("What is the highest price among {what}?", "How much is the dearest of the {what}?"),
    "SUM(stock)": ("How many units of {what} are in the warehouse?", "Sum up the stock of {what}."),
    "name": ("Which {what} do we have?", "List the {what}.", "Show me the names of {what}."),
}
RANKING_QUESTIONS: dict[str, tuple[str, ...]] = {
    "DESC": ("What are the {count} most expensive {what}?", "Show the {count} dearest {what}."),
    "ASC": ("What are the {count} cheapest {what}?", "Show the {count} least expensive {what}."),
}


def make_question(rng: Random) -> Example:
    """Makes a question and its query. The subject is the query, so training sees no wording of a held-out query."""
    text, query = rng.choice((ask_orders, ask_orders, ask_products, ask_ranking))(rng)
    return Example(text, query, query)


def ask_orders(rng: Random) -> tuple[str, str]:
    what, where = describe_orders(rng)
    column = rng.choice(tuple(ORDER_QUESTIONS))
    question = rng.choice(ORDER_QUESTIONS[column]).format(what=what)
    return question, f"SELECT {column} FROM orders{where}"


def ask_products(rng: Random) -> tuple[str, str]:
    what, where = describe_products(rng)
    column = rng.choice(tuple(PRODUCT_QUESTIONS))
    question = rng.choice(PRODUCT_QUESTIONS[column]).format(what=what)
    return question, f"SELECT {column} FROM products{where}"


def ask_ranking(rng: Random) -> tuple[str, str]:
    what, where = describe_products(rng)
    direction = rng.choice(tuple(RANKING_QUESTIONS))
    count = rng.randint(2, 20)
    question = rng.choice(RANKING_QUESTIONS[direction]).format(what=what, count=count)
    return question, f"SELECT name FROM products{where} ORDER BY price {direction} LIMIT {count}"


def describe_orders(rng: Random) -> tuple[str, str]:
    """Returns a noun phrase for some orders, and its WHERE clause of one or two conditions in the order of the
    columns."""
    chosen = rng.sample(("city", "product", "status", "total"), rng.randint(1, 2))
    city, item, status = rng.choice(CITIES), rng.choice(ITEMS), rng.choice(STATUSES)
    total = rng.randrange(50, 1000, 10)
    phrase = f"{status} orders" if "status" in chosen else "orders"
    phrase += f" from {city}" if "city" in chosen else ""
    phrase += f" for a {item}" if "product" in chosen else ""
    phrase += f" over {total} euros" if "total" in chosen else ""
    conditions = {
        "city": f"city = '{city}'",
        "product": f"product = '{item}'",
        "status": f"status = '{status}'",
        "total": f"total > {total}",
    }
    return phrase, where_clause([text for column, text in conditions.items() if column in chosen])


def describe_products(rng: Random) -> tuple[str, str]:
    category = rng.choice(CATEGORIES)
    phrase, conditions = f"{category} products", [f"category = '{category}'"]
    extra = rng.choice(("", "cheap", "dear", "scarce"))
    limit = rng.randint(5, 99)
    if extra == "cheap":
        phrase, conditions = f"{phrase} under {limit} euros", [*conditions, f"price < {limit}"]
    elif extra == "dear":
        phrase, conditions = f"{phrase} over {limit} euros", [*conditions, f"price > {limit}"]
    elif extra == "scarce":
        phrase, conditions = f"{phrase} with fewer than {limit} in stock", [*conditions, f"stock < {limit}"]
    return phrase, where_clause(conditions)


def where_clause(conditions: list[str]) -> str:
    return " WHERE " + " AND ".join(conditions)


def is_same_query(example: Example, output: str) -> bool:
    """Returns whether the output is the query. White space and a closing semicolon do not count; all else must match,
    case included."""
    return " ".join(output.split()).removesuffix(";").rstrip() == example.answer
