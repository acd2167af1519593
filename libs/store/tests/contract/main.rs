//! One suite of facts, run over the stores in memory, on SQLite and on PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a step that fails is a fact that fails")]

mod candles;
mod databases;
mod history;
mod repositories;

// The starter of the end-to-end tests, which need it too; not all of it is used here.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../../tests/src/postgres.rs"]
mod postgres;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../../tests/src/server_process.rs"]
mod server_process;

use store::{StoreOptions, Stores};

/// Makes a test of every fact for memory and SQLite. PostgreSQL gets one test for all, each fact in a database of its own, so that one
/// server is started, and stopped whatever happens.
macro_rules! contract {
    ($($module:ident :: $fact:ident,)*) => {
        mod on_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                super::$module::$fact(&store::Stores::memory()).await;
            })*
        }

        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let folder = tempfile::tempdir().unwrap();
                let stores = super::sqlite(folder.path()).await;
                super::$module::$fact(&stores).await;
                stores.close().await;
            })*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn every_fact_on_postgres() {
            let Some(server) = postgres::Postgres::start_if_installed().unwrap() else { return };
            $({
                println!("on postgres: {}", stringify!($fact));
                let url = server.create_database(stringify!($fact)).unwrap();
                let stores = Stores::open(&url, &StoreOptions::default()).await.unwrap();
                $module::$fact(&stores).await;
                stores.close().await;
            })*
        }
    };
}

contract! {
    candles::a_round_trip_is_exact_to_the_bit,
    candles::equal_rows_are_unchanged_and_later_rows_win,
    candles::puts_in_any_order_give_the_same_candles,
    candles::concurrent_writers_of_one_day_lose_nothing,
    candles::a_refused_call_stores_nothing,
    candles::ranges_are_half_open_and_trimmed,
    candles::daily_candles_lie_in_blocks_of_a_year,
    candles::many_instruments_in_one_call_keep_their_outcomes,
    candles::last_candles_carry_the_day_and_the_close_before,
    candles::what_was_never_stored_is_empty,
    history::a_revision_repeats_its_answer_until_pruned,
    history::a_stream_keeps_its_revision_while_others_write,
    history::changes_come_in_order_and_without_gaps,
    history::random_puts_equal_a_plain_map_at_every_revision,
    repositories::instruments_are_listed_by_key_and_segment,
    repositories::groups_keep_their_order,
    repositories::one_of_many_flag_writers_wins,
    repositories::a_study_changes_state_only_from_the_expected_one,
    repositories::trials_are_idempotent_and_ranked,
    repositories::intents_are_stored_once_per_idempotency_key,
    repositories::analyses_are_found_by_range,
}

async fn sqlite(folder: &std::path::Path) -> Stores {
    let url = format!("sqlite://{}", folder.join("candles.db").display());
    Stores::open(&url, &StoreOptions::default()).await.unwrap()
}
