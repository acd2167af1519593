//! The wire: generated messages and services, their conversion to and from domain types, and the Arrow schemas of bulk frames.
//!
//! Parsing happens here and nowhere else: a message that converts has been checked, and an error names the field.

pub mod arrow;
pub mod convert;
pub mod json;

/// Generated code, one module per protobuf package.
macro_rules! package {
    ($module:ident, $package:literal) => {
        #[doc = concat!("Generated from `", $package, "`.")]
        #[allow(unreachable_pub, missing_debug_implementations, rustdoc::all, clippy::all, clippy::clone_on_ref_ptr)]
        pub mod $module {
            tonic::include_proto!($package);
        }
    };
}

/// Generated modules, laid out as the packages are so that cross-package references resolve.
pub mod candlemesh {
    pub mod market {
        package!(v1, "candlemesh.market.v1");
    }
    pub mod ingestion {
        package!(v1, "candlemesh.ingestion.v1");
    }
    pub mod aggregation {
        package!(v1, "candlemesh.aggregation.v1");
    }
    pub mod indicator {
        package!(v1, "candlemesh.indicator.v1");
    }
    pub mod sequence {
        package!(v1, "candlemesh.sequence.v1");
    }
    pub mod optimizer {
        package!(v1, "candlemesh.optimizer.v1");
    }
    pub mod gateway {
        package!(v1, "candlemesh.gateway.v1");
    }
}

pub use candlemesh::{
    aggregation::v1 as aggregation, gateway::v1 as gateway, indicator::v1 as indicator, ingestion::v1 as ingestion,
    market::v1 as wire, optimizer::v1 as optimizer, sequence::v1 as sequence,
};

/// Encoded `FileDescriptorSet` of every package, with comments: for reflection and for the REST surface.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/candlemesh.bin"));
