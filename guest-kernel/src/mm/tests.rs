//! Address spaces against a model: random mappings, writes, protections and forks must leave every byte as the model has it.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use sentry_abi::layout::PAGE_SIZE;

use super::{AddressSpace, MapRequest, Prot, SharedPages, VmaFlags, VmaKind, frames, user::UserAddr};

const BASE: u64 = 0x1000_0000;
const PAGES: u64 = 48;

#[derive(Clone, Debug)]
enum Op {
    Map { page: u64, pages: u64, writable: bool, shared: bool },
    Unmap { page: u64, pages: u64 },
    Protect { page: u64, pages: u64, writable: bool },
    Write { page: u64, value: u8 },
    Discard { page: u64, pages: u64 },
    Move { page: u64, pages: u64, to: u64 },
    Fork,
}

fn ops() -> impl Strategy<Value = Op> {
    let range = || (0..PAGES, 1..12u64);
    prop_oneof![
        3 => (range(), any::<bool>(), any::<bool>())
            .prop_map(|((page, pages), writable, shared)| Op::Map { page, pages, writable, shared }),
        1 => range().prop_map(|(page, pages)| Op::Unmap { page, pages }),
        2 => (range(), any::<bool>()).prop_map(|((page, pages), writable)| Op::Protect { page, pages, writable }),
        6 => (0..PAGES, any::<u8>()).prop_map(|(page, value)| Op::Write { page, value }),
        1 => range().prop_map(|(page, pages)| Op::Discard { page, pages }),
        1 => (range(), 0..PAGES).prop_map(|((page, pages), to)| Op::Move { page, pages, to }),
        1 => Just(Op::Fork),
    ]
}

/// A page of the model: writable or not, and its byte (in a cell that shared mappings have in common).
#[derive(Clone)]
struct ModelPage {
    writable: bool,
    private: bool,
    byte: Arc<std::sync::Mutex<u8>>,
}

type Model = BTreeMap<u64, ModelPage>;

fn fork_model(model: &Model) -> Model {
    let copy = |p: &ModelPage| ModelPage {
        byte: if p.private { Arc::new(std::sync::Mutex::new(*p.byte.lock().unwrap())) } else { p.byte.clone() },
        ..p.clone()
    };
    model.iter().map(|(k, v)| (*k, copy(v))).collect()
}

fn address(page: u64) -> u64 {
    BASE + page * PAGE_SIZE
}

fn check(space: &AddressSpace, model: &Model) -> Result<(), TestCaseError> {
    for page in 0..PAGES + 12 {
        let mut byte = [0];
        let got = space.read(UserAddr(address(page) + 7), &mut byte);
        match model.get(&page) {
            Some(p) => {
                prop_assert!(got.is_ok(), "page {page} cannot be read");
                prop_assert_eq!(byte[0], *p.byte.lock().unwrap(), "page {}", page);
            }
            None => prop_assert!(got.is_err(), "page {page} can be read"),
        }
    }
    Ok(())
}

fn apply(space: &AddressSpace, model: &mut Model, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Map { page, pages, writable, shared } => {
            let kind = if shared {
                VmaKind::Object { pager: Arc::new(SharedPages::new(0, 0, "".into(), pages * PAGE_SIZE)), offset: 0 }
            } else {
                VmaKind::Anonymous
            };
            let prot = if writable { Prot::READ | Prot::WRITE } else { Prot::READ };
            let request = MapRequest {
                address: address(page),
                len: pages * PAGE_SIZE,
                prot,
                max_prot: Prot::all(),
                flags: if shared { VmaFlags::SHARED } else { VmaFlags::empty() },
                kind,
                fixed: true,
                no_replace: false,
            };
            prop_assert_eq!(space.map(request), Ok(address(page)));
            for p in page..page + pages {
                model.insert(p, ModelPage { writable, private: !shared, byte: Arc::default() });
            }
        }
        Op::Unmap { page, pages } => {
            prop_assert_eq!(space.unmap(address(page), pages * PAGE_SIZE), Ok(()));
            (page..page + pages).for_each(|p| drop(model.remove(&p)));
        }
        Op::Protect { page, pages, writable } => {
            let whole = (page..page + pages).all(|p| model.contains_key(&p));
            let prot = if writable { Prot::READ | Prot::WRITE } else { Prot::READ };
            prop_assert_eq!(space.protect(address(page), pages * PAGE_SIZE, prot).is_ok(), whole);
            if whole {
                (page..page + pages).for_each(|p| model.get_mut(&p).unwrap().writable = writable);
            }
        }
        Op::Write { page, value } => {
            let done = space.write(UserAddr(address(page) + 7), &[value]).is_ok();
            let allowed = model.get(&page).is_some_and(|p| p.writable);
            prop_assert_eq!(done, allowed, "write to page {}", page);
            if done {
                *model[&page].byte.lock().unwrap() = value;
            }
        }
        Op::Discard { page, pages } => {
            let whole = (page..page + pages).all(|p| model.contains_key(&p));
            prop_assert_eq!(space.discard(address(page), pages * PAGE_SIZE).is_ok(), whole);
            for p in page..page + pages {
                if let Some(p) = model.get(&p).filter(|p| p.private) {
                    *p.byte.lock().unwrap() = 0;
                }
            }
        }
        Op::Move { page, pages, to } => {
            let old: Vec<u64> = (page..page + pages).collect();
            let apart = to + pages <= page || page + pages <= to;
            let moved =
                space.remap(address(page), pages * PAGE_SIZE, pages * PAGE_SIZE, true, Some(address(to)), false);
            // Only one mapping can move; the model does not know where one ends, so it believes a refusal.
            if moved.is_ok() {
                prop_assert!(apart && old.iter().all(|p| model.contains_key(p)));
                let pages: Vec<ModelPage> = old.iter().filter_map(|p| model.remove(p)).collect();
                for (i, p) in pages.into_iter().enumerate() {
                    model.insert(to + i as u64, p);
                }
            } else if apart && !old.iter().all(|p| model.contains_key(p)) {
                // Refused because a page is missing: the target may have been cleared before that was seen.
                return Err(TestCaseError::reject("partial move"));
            } else if apart {
                return Err(TestCaseError::reject("move over several mappings"));
            }
        }
        Op::Fork => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_global_rejects: 10_000, ..ProptestConfig::default() })]
    #[test]
    fn every_byte_is_where_the_model_has_it(ops in proptest::collection::vec(ops(), 1..60)) {
        frames::init_hosted();
        let mut worlds = vec![(AddressSpace::new().unwrap(), Model::new())];
        for (i, op) in ops.iter().enumerate() {
            if matches!(op, Op::Fork) && worlds.len() < 4 {
                let (space, model) = &worlds[i % worlds.len()];
                let child = (space.fork().unwrap(), fork_model(model));
                worlds.push(child);
                continue;
            }
            let at = i % worlds.len();
            let (space, model) = &mut worlds[at];
            apply(space, model, op)?;
        }
        for (space, model) in &worlds {
            check(space, model)?;
            let pages: u64 = space.mappings().iter().map(|v| v.len()).sum();
            prop_assert_eq!(pages, model.len() as u64 * PAGE_SIZE);
            prop_assert_eq!(space.usage().0, pages);
        }
    }
}
