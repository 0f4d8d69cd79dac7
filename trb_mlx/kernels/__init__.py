"""Our own kernels for a GPU, each tried against the plain operations of `ops` before its use."""
