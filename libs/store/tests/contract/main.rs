//! One suite of facts, run over the stores in memory, on SQLite and on PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a step that fails is a fact that fails")]

mod actions;
mod backfills;
mod candles;
mod check;
mod databases;
mod full;
mod history;
mod repositories;
mod years;

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
    actions::actions_are_replaced_by_identity_and_listed_by_date,
    actions::a_bad_action_stores_nothing,
    candles::a_round_trip_is_exact_to_the_bit,
    candles::equal_rows_are_unchanged_and_later_rows_win,
    candles::puts_in_any_order_give_the_same_candles,
    candles::concurrent_writers_of_one_day_lose_nothing,
    candles::a_refused_call_stores_nothing,
    candles::the_first_candles_decide_the_calendar,
    candles::ranges_are_half_open_and_trimmed,
    candles::daily_candles_lie_in_blocks_of_a_year,
    candles::many_instruments_in_one_call_keep_their_outcomes,
    candles::last_candles_carry_the_day_and_the_close_before,
    candles::what_was_never_stored_is_empty,
    history::a_revision_repeats_its_answer_until_pruned,
    history::a_stream_keeps_its_revision_while_others_write,
    history::the_first_change_between_revisions_is_known_until_pruned,
    history::a_stream_that_meets_a_prune_never_gives_newer_values,
    history::changes_come_in_order_and_without_gaps,
    history::puts_hand_over_the_changes_they_logged,
    history::a_prune_of_several_slices_leaves_the_current_candles,
    history::random_puts_equal_a_plain_map_at_every_revision,
    databases::one_connection_serves_everyone_in_turn,
    years::candles_around_new_year_are_those_of_a_plain_map,
    years::a_read_of_many_years_is_whole_and_in_order,
    check::what_is_sound_has_no_findings,
    check::what_is_being_written_has_no_findings,
    repositories::instruments_are_listed_by_key_and_segment,
    repositories::instruments_inserted_together_leave_known_ones_alone,
    repositories::groups_keep_their_order,
    repositories::a_store_is_like_no_other,
    repositories::one_of_many_flag_writers_wins,
    repositories::a_study_changes_state_only_from_the_expected_one,
    repositories::trials_are_idempotent_and_ranked,
    repositories::intents_are_stored_once_per_idempotency_key,
    repositories::analyses_are_found_by_range,
    backfills::a_backfill_is_created_once_per_request_and_listed_newest_first,
    backfills::of_many_claimers_each_backfill_has_one,
    backfills::an_expired_lease_is_taken_over_and_the_stale_owner_is_shut_out,
    backfills::sums_move_with_their_files,
    backfills::a_request_reaches_the_worker_and_a_release_answers_it,
}

async fn sqlite(folder: &std::path::Path) -> Stores {
    let url = format!("sqlite://{}", folder.join("candles.db").display());
    Stores::open(&url, &StoreOptions::default()).await.unwrap()
}
