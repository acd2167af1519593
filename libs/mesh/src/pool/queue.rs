//! What waits, and whose turn it is.

use std::collections::VecDeque;

use super::Priority;

/// Starts of each priority in a round, while all have tasks waiting: one in five is a batch's, one in 21 is in the background. So a task
/// waits for at most a fixed number of starts per task before it in its own queue, whatever arrives in the others.
const WEIGHTS: [u64; 3] = [16, 4, 1];
/// What a start costs its priority: the heaviest weight over its own.
const STRIDES: [u64; 3] = [1, WEIGHTS[0] / WEIGHTS[1], WEIGHTS[0] / WEIGHTS[2]];

/// Three bounded queues and the turns between them (stride scheduling: Waldspurger and Weihl, 1995).
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: [VecDeque<T>; 3],
    /// Per priority, what its starts have cost; the one that paid least is next.
    paid: [u64; 3],
    /// What the last to start had paid: one whose queue was empty joins here, with no credit for the time it did not ask.
    clock: u64,
    capacity: usize,
    in_background: usize,
    /// Workers that may be in the background at once; the others stay free for tasks that do not last.
    background_limit: usize,
    pub(super) is_closed: bool,
}

impl<T> Queue<T> {
    /// Room for `capacity` waiting tasks of each priority.
    pub(super) fn new(capacity: usize, workers: usize) -> Self {
        Self {
            waiting: [const { VecDeque::new() }; 3],
            paid: [0; 3],
            clock: 0,
            capacity,
            in_background: 0,
            background_limit: (workers / 2).max(1),
            is_closed: false,
        }
    }

    /// Queues a task, or gives it back.
    pub(super) fn push(&mut self, priority: Priority, task: T) -> Result<(), T> {
        let index = priority.index();
        let waiting = &mut self.waiting[index];
        if waiting.len() >= self.capacity {
            return Err(task);
        }
        if waiting.is_empty() {
            self.paid[index] = self.paid[index].max(self.clock);
        }
        waiting.push_back(task);
        Ok(())
    }

    /// The next task that may start. [`ended`](Self::ended) follows when it is done.
    pub(super) fn pop(&mut self) -> Option<(Priority, T)> {
        let may_start = |priority: &Priority| {
            let free = *priority != Priority::Background || self.in_background < self.background_limit;
            free && !self.waiting[priority.index()].is_empty()
        };
        let next = Priority::ALL.into_iter().filter(may_start).min_by_key(|priority| self.paid[priority.index()])?;
        let index = next.index();
        let task = self.waiting[index].pop_front()?;
        self.clock = self.paid[index];
        self.paid[index] += STRIDES[index];
        self.in_background += usize::from(next == Priority::Background);
        Some((next, task))
    }

    pub(super) fn ended(&mut self, priority: Priority) {
        self.in_background -= usize::from(priority == Priority::Background);
    }

    /// Whether a worker that found nothing for itself may find something after a task has ended.
    pub(super) fn has_background(&self) -> bool {
        !self.waiting[Priority::Background.index()].is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    pub(super) fn depths(&self) -> [usize; 3] {
        std::array::from_fn(|index| self.waiting[index].len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(count: usize) -> Queue<usize> {
        let mut queue = Queue::new(count, 64);
        for number in 0..count {
            Priority::ALL.into_iter().for_each(|priority| queue.push(priority, number).unwrap());
        }
        queue
    }

    #[test]
    fn every_round_of_21_starts_has_16_4_and_1() {
        let mut queue = filled(160);
        for _ in 0..10 {
            let mut starts = [0; 3];
            for _ in 0..21 {
                starts[queue.pop().unwrap().0.index()] += 1;
            }
            assert_eq!(starts, [16, 4, 1]);
        }
    }

    #[test]
    fn a_queue_that_was_empty_gets_no_credit_for_it() {
        let mut queue = Queue::new(1000, 64);
        for number in 0..200 {
            queue.push(Priority::Interactive, number).unwrap();
        }
        (0..100).for_each(|_| assert!(queue.pop().is_some()));
        (0..100).for_each(|number| queue.push(Priority::Batch, number).unwrap());
        let batch = (0..50).filter(|_| queue.pop().unwrap().0 == Priority::Batch).count();
        assert!((9..=11).contains(&batch), "{batch} of 50");
    }

    #[test]
    fn within_a_priority_the_oldest_starts_first_and_all_start() {
        let mut queue = filled(100);
        let mut seen = [const { Vec::new() }; 3];
        while let Some((priority, number)) = queue.pop() {
            queue.ended(priority);
            seen[priority.index()].push(number);
        }
        assert!(seen.iter().all(|seen| *seen == (0..100).collect::<Vec<_>>()));
    }

    #[test]
    fn background_never_takes_more_than_half_of_the_workers() {
        let mut queue = Queue::new(10, 5);
        (0..5).for_each(|number| queue.push(Priority::Background, number).unwrap());
        assert!(queue.pop().is_some() && queue.pop().is_some() && queue.pop().is_none());
        queue.push(Priority::Batch, 9).unwrap();
        assert_eq!(queue.pop(), Some((Priority::Batch, 9)));
        queue.ended(Priority::Background);
        assert_eq!(queue.pop(), Some((Priority::Background, 2)));
    }

    #[test]
    fn a_full_priority_refuses_its_own_and_no_other() {
        let mut queue = Queue::new(1, 1);
        assert_eq!(queue.push(Priority::Batch, 1), Ok(()));
        assert_eq!(queue.push(Priority::Batch, 2), Err(2));
        assert_eq!(queue.push(Priority::Interactive, 3), Ok(()));
        assert_eq!(queue.depths(), [1, 1, 0]);
    }
}
