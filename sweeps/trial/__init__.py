"""What a trial is: where its things go, the circuits of one task of its model, its rows. Nothing of Ray."""
