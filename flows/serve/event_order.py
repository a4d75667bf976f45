"""How long the server's automations keep an event back for the one before it. PREFECT_SERVER_EVENTS_CAUSAL_ORDERING names
this module.

Each change of a run's state follows another, and automations act on them in this order. Which ones they have seen they keep
in memory. So a state that follows one from before the server's start, or one whose event was lost because the database was
locked, is kept back, and all that follow it, too: for 15 minutes, and Prefect has no setting for that. A run that crashed
would not be resumed so long.
"""

from datetime import timedelta

from prefect.server.events.ordering import memory

PATIENCE = timedelta(seconds=15)  # events of one server come out of order by moments

memory.PRECEDING_EVENT_LOOKBACK = PATIENCE
CausalOrdering = memory.CausalOrdering
