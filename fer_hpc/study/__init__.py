"""A whole study as a graph of commands: plan, state, driver."""
