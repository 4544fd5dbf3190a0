"""Parts of the executor node that deal with poses."""
