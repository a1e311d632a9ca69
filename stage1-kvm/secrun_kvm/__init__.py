"""The KVM stage1."""
