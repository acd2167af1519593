-- Tells this database from every other, also from one made anew in its place: revisions begin at 1 in each.
create table store_identity (id text not null primary key);
insert into store_identity (id) values (lower(hex(randomblob(16))));
