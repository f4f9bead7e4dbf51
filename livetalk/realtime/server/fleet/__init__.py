"""One address for many servers: a router in front of replicas, each a server of its own on a GPU of its own."""
