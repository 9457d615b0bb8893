"""What train.py and eval.py run."""
