"""Who calls: tokens, the tenants behind them, and what each may do.

Imports no torch, and knows no door and no engine.
"""
