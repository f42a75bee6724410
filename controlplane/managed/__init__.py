"""Objects that are managed from files (GitOps), and how their pages say so."""
