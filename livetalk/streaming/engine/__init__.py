"""The fast path of a stream: the same blocks as the plain one, from memory and kernels that stay where they are."""
