-- A session of minutes is one and a half kilobytes: kept in the row, it is read and written without a second table. Blocks stored before stay where they are.
alter table candle_block set (toast_tuple_target = 8160);
alter table candle_block_history set (toast_tuple_target = 8160);
