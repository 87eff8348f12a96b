//! What one engine counts of each service: numbers that no other engine writes to.

use std::sync::{Arc, Weak};

use crate::counters::Counters;
use crate::service::Service;

/// The services that one engine has connections of.
#[derive(Default)]
pub(crate) struct Shards(Vec<(Weak<Service>, Arc<Counters>)>);

impl Shards {
    /// What the engine counts with of this service.
    pub(crate) fn of(&mut self, service: &Arc<Service>) -> Arc<Counters> {
        let known = |(other, _): &&(Weak<Service>, Arc<Counters>)| {
            Weak::as_ptr(other) == Arc::as_ptr(service)
        };
        if let Some((_, shard)) = self.0.iter().find(known) {
            return Arc::clone(shard);
        }
        // Besides us the service has it, and each of its connections here.
        self.0.retain(|(_, shard)| Arc::strong_count(shard) > 2);
        let shard = service.shard();
        self.0.push((Arc::downgrade(service), Arc::clone(&shard)));
        shard
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Shards;
    use crate::service::{Limits, Service};

    #[test]
    fn what_was_counted_stays_with_the_service() {
        let service = Service::new(String::new(), Limits::default(), 9);
        for _ in 0..100 {
            // An engine that comes and goes.
            let mut shards = Shards::default();
            shards.of(&service).reads.raise(1);
            assert!(Arc::ptr_eq(&shards.of(&service), &shards.of(&service)));
        }
        assert_eq!(service.counters().reads.get(), 100);
        // Those that went are one number.
        assert!(service.shards() <= 2);
    }

    #[test]
    fn a_service_without_connections_is_forgotten() {
        let mut shards = Shards::default();
        for _ in 0..100 {
            let service = Service::new(String::new(), Limits::default(), 9);
            shards.of(&service).reads.raise(1);
        }
        assert_eq!(shards.0.len(), 1);
    }
}
