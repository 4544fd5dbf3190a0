"""Parts of the policy node, each with the four steps of a managed node."""
