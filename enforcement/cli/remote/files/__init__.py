"""Policy files: what they say, how they differ from a control plane, and how they are applied."""
