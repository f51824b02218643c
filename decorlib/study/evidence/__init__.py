"""From records to answers: records, provenance, statistics, verdicts, comparison, the answer table, the figures' style.

Nothing here knows what was computed: this room imports no other room of the project.
"""
