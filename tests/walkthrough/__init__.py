"""README's commands and those of docs/, typed as a reader types them."""
