"""What lives and fails: the cluster, its workers, the coordinator, and the engine that a user holds."""
