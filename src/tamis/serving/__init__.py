"""The funnel served: a store of ads and events, what is known of users now, an engine, HTTP."""
