"""Programs that measure blora: `blora bench`. They may import everything; nothing imports them."""
