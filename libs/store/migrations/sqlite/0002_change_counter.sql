insert into candle_change_counter (counter_id, last_sequence, pruned_sequence) values (1, 0, 0);
