"""Support ticket -> one routing label of twelve. Owns the complaints and their labels."""

from random import Random

from .example import Example

PRODUCTS = (
    "headphones",
    "desk lamp",
    "coffee grinder",
    "running shoes",
    "backpack",
    "keyboard",
    "yoga mat",
    "phone case",
    "office chair",
    "water bottle",
    "winter jacket",
    "blender",
    "board game",
    "camera",
    "bike helmet",
    "tea kettle",
)
NAMES = ("Maria", "Tom", "Aisha", "Ken", "Olga", "Luis", "Priya", "Hannah", "Omar", "Jun", "Clara", "Pavel")

OPENERS = ("", "", "", "Hi, ", "Hello, ", "Hey team, ", "Good morning, ", "Order {number}: ", "Hi support, ")
CLOSERS = (
    "",
    "",
    "",
    " Thanks, {name}",
    " Please help.",
    " Regards, {name}",
    " This is urgent.",
    " My order is {number}.",
)

COMPLAINTS: dict[str, tuple[str, ...]] = {
    "billing/refund": (
        "I returned the {product} and want my money back.",
        "when will I get the refund for the {product}?",
        "please refund my {product}.",
        "I sent the {product} back last week but have not been reimbursed.",
        "I would like a refund for the {product} I did not like.",
        "how do I get my money back for the {product}?",
        "the refund you promised me for the {product} has not reached my bank.",
        "I am not happy with the {product} and would like a full refund.",
        "you still owe me a refund for the {product}.",
        "I cancelled the {product}, please give me the money back.",
        "can I return the {product} and be refunded?",
    ),
    "billing/double-charge": (
        "I was charged twice for the {product}.",
        "my card was billed two times for one {product}.",
        "there are two payments for the same {product} on my statement.",
        "you took the money for the {product} twice.",
        "I see a duplicate charge for the {product}.",
        "why did I pay double for the {product}?",
        "the {product} appears twice on my credit card bill.",
        "my bank shows the {product} payment two times.",
        "one {product}, but two charges on my card.",
        "a second identical charge for the {product} showed up.",
    ),
    "billing/invoice": (
        "I need an invoice for the {product}.",
        "please send me the invoice for my {product}.",
        "my accountant wants an invoice for the {product}.",
        "where can I download the invoice for the {product}?",
        "the invoice for the {product} has the wrong company name.",
        "could you add our VAT number to the {product} invoice?",
        "I never got an invoice for the {product}.",
        "can you email me a copy of the invoice for the {product}?",
        "the VAT number is missing on the invoice of the {product}.",
        "I require a PDF invoice for the {product} for my taxes.",
    ),
    "account/password": (
        "I forgot my password.",
        "the password reset email never arrives.",
        "how do I change my password?",
        "my password does not work any more.",
        "please reset my password, I wanted to buy a {product}.",
        "I cannot remember the password to see my {product} order.",
        "the link to reset my password has expired.",
        "it says that my password is wrong but it is not.",
        "I need a new password.",
        "I would like to set a new password before I order a {product}.",
    ),
    "account/email": (
        "I have a new email address, please update it.",
        "how do I change the email on my account?",
        "please change my email to {name}@example.com.",
        "my account still has my old email address.",
        "I want to use a different email address for my account.",
        "switch my account email to {name}@example.org please.",
        "I lost access to my old mailbox, please put my new email on the account.",
        "there is a typo in the email address of my account.",
        "can you replace my work email with my private email?",
        "update the email address of my profile to {name}@example.net.",
    ),
    "account/delete": (
        "please delete my account.",
        "I want to close my account.",
        "how do I delete my account and all my data?",
        "remove my account, I do not shop here any more.",
        "erase all the personal data you have about me.",
        "I bought a {product} once and now want my account gone.",
        "close my account for good.",
        "I no longer need my account, please remove it.",
        "under the privacy law I ask you to delete my data.",
        "where is the button to delete my account?",
    ),
    "shipping/late": (
        "my {product} has not arrived yet.",
        "where is my {product}?",
        "the {product} should have been here last week.",
        "the {product} is two weeks late.",
        "I am still waiting for the {product}.",
        "the tracking of my {product} has not moved for days.",
        "when will the {product} finally be delivered?",
        "the delivery of my {product} is overdue.",
        "I ordered a {product} a month ago and nothing has come.",
        "my {product} is late.",
    ),
    "shipping/damaged": (
        "the {product} arrived broken.",
        "my {product} was damaged in transit.",
        "the box was crushed and the {product} has a crack.",
        "I opened the parcel and the {product} was in pieces.",
        "the {product} came with scratches all over.",
        "the {product} is dented.",
        "the parcel was wet and the {product} is ruined.",
        "the {product} was cracked when I unpacked it.",
        "the courier dropped the parcel and broke the {product}.",
        "my new {product} arrived with a big dent and scratches.",
    ),
    "shipping/wrong-item": (
        "I ordered a {product} but got a {other}.",
        "you sent me a {other} instead of a {product}.",
        "this is not the {product} I ordered, it is a {other}.",
        "wrong item: I received a {other}, not a {product}.",
        "the parcel had a {other} in it, but I bought a {product}.",
        "I got the wrong colour of {product}.",
        "I received the {product} in the wrong size.",
        "somebody else's {other} was in my parcel instead of the {product}.",
        "the {product} you sent is a different model from the one I ordered.",
        "there was a {other} in the box where my {product} should be.",
    ),
    "shipping/address": (
        "please send the {product} to a different address.",
        "I moved, can you change the delivery address of my {product}?",
        "I typed the wrong street for the {product} delivery.",
        "can the {product} be delivered to my office instead?",
        "the delivery address of the {product} is wrong, please correct it.",
        "my house number is missing in the shipping address.",
        "please ship the {product} to my new home.",
        "I need to update the shipping address for the {product}.",
        "I gave you my old address for the {product}, please use the new one.",
        "the postcode in my delivery address is wrong.",
    ),
    "app/crash": (
        "the app crashes when I open the {product} page.",
        "your app closes by itself every time I start it.",
        "the app freezes when I add a {product} to the cart.",
        "after the update the app crashes at once.",
        "the app hangs on the start screen.",
        "the app shuts down when I look at the {product}.",
        "I cannot use the app, it keeps crashing.",
        "the phone app freezes at checkout with the {product}.",
        "the app stops responding when I search for a {product}.",
        "every time I tap on the {product} the app crashes.",
    ),
    "product/stock": (
        "when will the {product} be back in stock?",
        "is the {product} available again soon?",
        "the {product} is sold out, will you get more?",
        "do you have the {product} in stock?",
        "how many of the {product} do you have left?",
        "please tell me when the {product} is in stock again.",
        "will the sold out {product} come back?",
        "is the {product} still available?",
        "do you still have the {product} in green?",
        "your shop says that the {product} is out of stock, until when?",
    ),
}


def make_ticket(rng: Random) -> Example:
    """Makes a ticket. Its subject is the complaint without the product, so that a held-out ticket has words that
    training never sees."""
    label = rng.choice(tuple(COMPLAINTS))
    complaint = rng.choice(COMPLAINTS[label])
    product, other = rng.sample(PRODUCTS, 2)
    template = rng.choice(OPENERS) + complaint + rng.choice(CLOSERS)
    text = template.format(product=product, other=other, name=rng.choice(NAMES), number=rng.randint(10_000, 99_999))
    return Example(text[0].upper() + text[1:], label, complaint)
