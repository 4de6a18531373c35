"""How jobs reach hardware: a launcher submits them, a supervisor on the node carries them out."""
