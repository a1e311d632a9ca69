"""The stage1 contract and the flavours that live on it."""
