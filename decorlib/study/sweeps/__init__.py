"""A sweep: frozen specifications -> records, cached, resumable, in parallel or on a cluster.

Nothing here knows what is being computed: this room imports no other room of the project.
"""
