//! How streams are served, whoever watches the idle ones.

mod common;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{
    Client, PATIENCE, Record, Script, World, count, lock, no_block, pattern, streams, tcp, unix,
};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use reactor::{Action, Demultiplexer, Reason};

in_every_world! {
    messages_of_every_size_come_back,
    a_large_message_outlives_many_refusals_of_the_kernel,
    data_before_a_hang_up_is_answered,
    pending_output_reaches_a_peer_that_half_closed,
    a_reset_during_a_pending_write_ends_in_one_loss,
    a_reset_of_a_waiting_connection_is_one_loss,
    a_peer_that_closes_is_one_loss,
    a_paused_connection_hears_nothing_until_it_is_resumed,
    a_peer_that_vanishes_during_a_pause_is_noticed,
    a_peer_that_vanished_before_the_pause_is_noticed,
    an_abort_closes_at_once,
    a_close_sends_what_is_buffered,
    a_close_with_unread_data_keeps_the_last_reply,
    data_that_comes_during_a_close_keeps_the_last_reply,
    an_action_of_connected_is_performed,
    a_greeting_and_a_close_reach_the_peer,
    a_refused_connection_is_closed_without_a_loss,
    an_eof_that_continues_leaves_the_other_direction_open,
    an_eof_that_continues_ends_with_a_dead_peer,
    an_eof_that_writes_is_written,
    a_pause_asked_for_from_outside_and_taken_back,
    writing_from_outside_reaches_a_waiting_peer,
    an_out_of_band_byte_hides_no_data,
    ancillary_data_hides_no_data,
    a_socket_that_was_never_connected_is_lost,
}

fn messages_of_every_size_come_back<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(server, Script::echo());
        for size in [
            1, 2, 63, 1000, 4096, 122_879, 122_880, 122_881, 131_072, 300_001,
        ] {
            let sent = pattern(size);
            assert!(world.exchange(&mut client, &sent) == sent, "{kind} {size}");
        }
        assert!(!record.is_lost());
        drop(client);
        world.until("the loss", || record.is_lost());
        assert_eq!(record.reason(), Reason::Eof);
    }
    world.stop();
}

fn a_large_message_outlives_many_refusals_of_the_kernel<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let whole = pattern(20_000_000);
        let answer = whole.clone();
        let record = world.serve(
            server,
            Script::echo().on_data(move |talk, _| {
                talk.outbox.push_back(answer.clone());
                Ok(Action::WritePending)
            }),
        );
        client.write_all(b"?").expect("room");
        world.until("a refusal", || count(&record.writable) > 0);
        let mut got = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        world.until("20 MB", || {
            while let Some(length) = no_block(client.read(&mut buffer)) {
                got.extend_from_slice(&buffer[..length]);
            }
            got.len() >= whole.len()
        });
        assert!(got == whole, "{kind}");
        assert!(count(&record.writable) > 1, "{kind} was never refused");
        assert_eq!(count(&record.lost), 0);
        // The connection is as good as before.
        client.half_close();
        world.until("the loss", || record.is_lost());
    }
}

fn data_before_a_hang_up_is_answered<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let sent = pattern(150_000);
        client.write_all(&sent[..100_000]).expect("room");
        client.half_close();
        world.serve(server, Script::echo());
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert!(got == sent[..100_000], "{kind}");
    }
}

fn pending_output_reaches_a_peer_that_half_closed<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let whole = pattern(5_000_000);
        let answer = whole.clone();
        let record = world.serve(
            server,
            Script::echo().on_data(move |talk, _| {
                talk.outbox.push_back(answer.clone());
                Ok(Action::WritePending)
            }),
        );
        client.write_all(b"?").expect("room");
        world.until("a refusal", || count(&record.writable) > 0);
        client.half_close();
        world.until_quiet(&record);
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert!(got == whole, "{kind}");
        world.until("the loss", || record.is_lost());
        assert_eq!(record.reason(), Reason::Eof);
    }
}

fn a_reset_during_a_pending_write_ends_in_one_loss<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(
            server,
            Script::echo().on_data(|talk, _| {
                talk.outbox.push_back(pattern(20_000_000));
                Ok(Action::WritePending)
            }),
        );
        client.write_all(b"?").expect("room");
        world.until("a refusal", || count(&record.writable) > 0);
        world.until_quiet(&record);
        let calls = record.calls();
        client.reset();
        world.until("the loss", || record.is_lost());
        world.until_quiet(&record);
        assert_eq!(count(&record.lost), 1, "{kind}");
        assert!(record.calls() <= calls + 2, "{kind} spins");
    }
}

fn a_reset_of_a_waiting_connection_is_one_loss<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = tcp();
    let record = world.serve(server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    world.until_quiet(&record);
    Client::reset(Box::new(client));
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.lost), 1);
    assert_eq!(record.reason(), Reason::Failed(Errno::ECONNRESET));
    assert_eq!(world.mailbox().counters().parked.get(), 0);
}

fn a_peer_that_closes_is_one_loss<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(server, Script::echo());
        assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
        drop(client);
        world.until("the loss", || record.is_lost());
        world.until_quiet(&record);
        assert_eq!(count(&record.lost), 1, "{kind}");
        assert_eq!(count(&record.eof), 1, "{kind}");
        let counters = world.mailbox();
        assert_eq!(counters.counters().active.get(), 0, "{kind}");
        assert_eq!(counters.counters().parked.get(), 0, "{kind}");
    }
}

fn a_paused_connection_hears_nothing_until_it_is_resumed<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(
            server,
            Script::echo().on_data(|talk, _| {
                talk.echo()?;
                if count(&talk.record.readable) == 1 {
                    Ok(Action::Pause)
                } else {
                    Ok(Action::WritePending)
                }
            }),
        );
        client.write_all(b"one ").expect("room");
        world.until("the first", || count(&record.readable) == 1);
        client.write_all(b"two ").expect("room");
        world.until_quiet(&record);
        assert_eq!(count(&record.readable), 1, "{kind}");
        client.write_all(b"three").expect("room");
        client.half_close();
        world.until_quiet(&record);
        assert_eq!(record.calls(), 1, "{kind}");
        record.resume(Action::ReadPending);
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert_eq!(got, b"one two three", "{kind}");
    }
}

fn a_peer_that_vanishes_during_a_pause_is_noticed<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(server, Script::echo().on_data(|_, _| Ok(Action::Pause)));
        client.write_all(b"?").expect("room");
        world.until("the pause", || count(&record.readable) == 1);
        world.until_quiet(&record);
        client.reset();
        world.until("the loss", || record.is_lost());
        assert_eq!(record.reason(), Reason::PeerGone, "{kind}");
        assert_eq!(count(&record.eof), 0, "{kind}");
    }
}

fn a_peer_that_vanished_before_the_pause_is_noticed<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    client.write_all(b"?").expect("room");
    drop(client);
    let record = world.serve(server, Script::echo().on_data(|_, _| Ok(Action::Pause)));
    world.until("the loss", || record.is_lost());
    assert_eq!(record.reason(), Reason::PeerGone);
}

fn an_abort_closes_at_once<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(
            server,
            Script::echo().on_data(|talk, _| {
                talk.echo()?;
                Ok(Action::Abort)
            }),
        );
        client.write_all(b"?").expect("room");
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert_eq!(got, b"", "{kind}");
        assert_eq!(record.reason(), Reason::Aborted, "{kind}");
        assert_eq!(count(&record.lost), 1, "{kind}");
    }
}

fn a_close_sends_what_is_buffered<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let whole = pattern(8_000_000);
        let answer = whole.clone();
        let record = world.serve(
            server,
            Script::echo().on_data(move |talk, _| {
                talk.outbox.push_back(answer.clone());
                Ok(Action::Close)
            }),
        );
        client.write_all(b"?").expect("room");
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert!(got == whole, "{kind}");
        assert_eq!(record.reason(), Reason::Closed, "{kind}");
        assert_eq!(count(&record.writable), 0, "{kind}");
    }
}

fn a_close_with_unread_data_keeps_the_last_reply<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        // More than one read takes, so that something is left when the answer is given.
        client.write_all(&pattern(100_000)).expect("room");
        let record = world.serve(
            server,
            Script::echo().on_data(|talk, _| {
                talk.outbox.push_back(pattern(50_000));
                Ok(Action::Close)
            }),
        );
        world.until("the loss", || record.is_lost());
        let got = world.read_to_end(&mut client).expect("no reset");
        assert!(got == pattern(50_000), "{kind}");
    }
}

fn data_that_comes_during_a_close_keeps_the_last_reply<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let whole = pattern(8_000_000);
        let answer = whole.clone();
        let asked = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&asked);
        world.serve(
            server,
            Script::echo().on_data(move |talk, _| {
                talk.outbox.push_back(answer.clone());
                seen.fetch_add(1, Ordering::SeqCst);
                Ok(Action::Close)
            }),
        );
        client.write_all(b"?").expect("room");
        // From then on it waits for room to write.
        world.until("the answer", || asked.load(Ordering::SeqCst) == 1);
        client.write_all(b"one more thing").expect("room");
        let got = world.read_to_end(&mut client).expect("no reset");
        assert!(got == whole, "{kind}");
    }
}

fn an_action_of_connected_is_performed<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(
            server,
            Script::echo().on_connected(|talk, _| {
                talk.outbox.push_back(b"welcome ".to_vec());
                Ok(Action::WritePending)
            }),
        );
        client.write_all(b"thanks").expect("room");
        client.half_close();
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert_eq!(got, b"welcome thanks", "{kind}");
        assert_eq!(count(&record.connected), 1);
    }
    for verdict in [Ok(Action::Abort), Err(Reason::Exception)] {
        let (mut client, server) = tcp();
        let record = world.serve(server, Script::echo().on_connected(move |_, _| verdict));
        assert_eq!(world.read_to_end(&mut client).expect("an orderly end"), b"");
        assert_eq!(count(&record.lost), 1);
    }
    let (mut client, server) = tcp();
    let record = world.serve(
        server,
        Script::echo().on_connected(|_, _| Ok(Action::Pause)),
    );
    client.write_all(b"now").expect("room");
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    assert_eq!(record.calls(), 0);
    record.resume(Action::ReadPending);
    world.until("the data", || count(&record.readable) == 1);
}

fn a_greeting_and_a_close_reach_the_peer<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(
            server,
            Script::echo().on_connected(|talk, _| {
                talk.outbox.push_back(b"go away".to_vec());
                Ok(Action::Close)
            }),
        );
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert_eq!(got, b"go away", "{kind}");
        assert_eq!(record.reason(), Reason::Closed, "{kind}");
    }
}

fn a_refused_connection_is_closed_without_a_loss<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(server, Script::refusal());
        assert_eq!(
            world.read_to_end(&mut client).expect("an end"),
            b"",
            "{kind}"
        );
        assert_eq!(count(&record.lost), 0, "{kind}");
        assert_eq!(world.mailbox().counters().active.get(), 0, "{kind}");
    }
}

fn an_eof_that_continues_leaves_the_other_direction_open<D: Demultiplexer>(mut world: World<D>) {
    for (kind, client, server) in streams() {
        let record = world.serve(server, Script::echo().on_eof(|_, _| Ok(Action::Continue)));
        client.half_close();
        world.until("the eof", || count(&record.eof) == 1);
        world.until_quiet(&record);
        assert_eq!(count(&record.eof), 1, "{kind}");
        assert!(!record.is_lost(), "{kind}");
        client.reset();
        if kind == "unix" {
            world.until("the loss", || record.is_lost());
        }
        record_close(&mut world, &record);
    }
}

fn record_close<D: Demultiplexer>(world: &mut World<D>, record: &Record) {
    if !record.is_lost() {
        record.resume(Action::Close);
    }
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.lost), 1);
}

fn an_eof_that_continues_ends_with_a_dead_peer<D: Demultiplexer>(mut world: World<D>) {
    let (client, server) = unix();
    drop(client);
    let record = world.serve(server, Script::echo().on_eof(|_, _| Ok(Action::Continue)));
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.eof), 1);
    assert_eq!(record.reason(), Reason::PeerGone);
}

fn an_eof_that_writes_is_written<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(
            server,
            Script::echo()
                .on_eof(|talk, _| {
                    talk.outbox.push_back(pattern(3_000_000));
                    Ok(Action::WritePending)
                })
                .on_room(|talk, descriptor| match talk.write(descriptor) {
                    Ok(Action::ReadPending) => Ok(Action::Close),
                    other => other,
                }),
        );
        client.half_close();
        let got = world.read_to_end(&mut client).expect("an orderly end");
        assert!(got == pattern(3_000_000), "{kind}");
        world.until("the loss", || record.is_lost());
        assert_eq!(record.reason(), Reason::Eof, "{kind}");
    }
}

fn a_pause_asked_for_from_outside_and_taken_back<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(server, Script::echo());
        assert_eq!(world.exchange(&mut client, b"one"), b"one", "{kind}");
        for _ in 0..3 {
            record.resume(Action::Pause);
            world.until_quiet(&record);
            let calls = record.calls();
            client.write_all(b"more").expect("room");
            world.until_quiet(&record);
            assert_eq!(record.calls(), calls, "{kind}");
            record.resume(Action::ReadPending);
            world.until("the echo", || record.calls() > calls);
            world.until_quiet(&record);
            let mut got = [0; 4];
            client.read_exact(&mut got).expect("the echo");
            assert_eq!(&got, b"more", "{kind}");
        }
    }
}

fn writing_from_outside_reaches_a_waiting_peer<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(server, Script::echo());
        assert_eq!(world.exchange(&mut client, b"one"), b"one", "{kind}");
        let descriptor = record.descriptor();
        let whole = pattern(3_000_000);
        let rest = Arc::new(AtomicUsize::new(0));
        let writer = std::thread::spawn({
            let (whole, rest) = (whole.clone(), Arc::clone(&rest));
            move || {
                let mut sent = 0;
                let deadline = std::time::Instant::now() + PATIENCE;
                while sent < whole.len() && std::time::Instant::now() < deadline {
                    sent += descriptor.send(&whole[sent..]).expect("a live peer");
                    rest.store(sent, Ordering::SeqCst);
                    std::thread::yield_now();
                }
            }
        });
        let mut got = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        world.until("the bytes", || {
            while let Some(length) = no_block(client.read(&mut buffer)) {
                got.extend_from_slice(&buffer[..length]);
            }
            got.len() >= whole.len()
        });
        writer.join().expect("the writer ends");
        assert!(got == whole, "{kind} {}", rest.load(Ordering::SeqCst));
        assert_eq!(world.exchange(&mut client, b"two"), b"two", "{kind}");
    }
}

fn an_out_of_band_byte_hides_no_data<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = tcp();
    client.write_all(b"before ").expect("room");
    send(
        std::os::fd::AsRawFd::as_raw_fd(&client),
        b"!",
        MsgFlags::MSG_OOB,
    )
    .expect("room");
    client.write_all(b"after").expect("room");
    let record = world.serve(server, Script::echo());
    world.until("all bytes", || count(&record.bytes) >= 12);
    // The same once the connection waits.
    world.until_quiet(&record);
    client.write_all(b"before ").expect("room");
    send(
        std::os::fd::AsRawFd::as_raw_fd(&client),
        b"!",
        MsgFlags::MSG_OOB,
    )
    .expect("room");
    client.write_all(b"after").expect("room");
    world.until("all bytes", || count(&record.bytes) >= 24);
}

fn ancillary_data_hides_no_data<D: Demultiplexer>(mut world: World<D>) {
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::os::fd::AsRawFd;
    let (client, server) = unix();
    let fds = [client.as_fd().as_raw_fd()];
    let message = |bytes: &[u8]| {
        sendmsg::<()>(
            client.as_raw_fd(),
            &[std::io::IoSlice::new(bytes)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .expect("room");
    };
    message(b"before ");
    (&client).write_all(b"after").expect("room");
    let record = world.serve(server, Script::echo());
    world.until("all bytes", || count(&record.bytes) >= 12);
}

fn a_socket_that_was_never_connected_is_lost<D: Demultiplexer>(mut world: World<D>) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    for family in [AddressFamily::Inet, AddressFamily::Unix] {
        let fd = socket(family, SockType::Stream, SockFlag::empty(), None).expect("a socket");
        let record = world.serve(fd, Script::echo());
        world.until("the loss", || record.is_lost());
        assert_eq!(count(&record.lost), 1);
        assert_eq!(lock(&record.reasons).len(), 1);
    }
}
