//! Messages byte for byte (little-endian hosts) and damaged answers.
use super::*;

/// Lower-case hex of a message, blanks ignored on the other side.
fn is(message: Vec<u8>, hex: &str) {
    let got: String = message.iter().map(|b| format!("{b:02x}")).collect();
    let want: String = hex.split_whitespace().collect();
    assert_eq!(got, want);
    let len = u32::from_ne_bytes(message[..4].try_into().unwrap());
    assert_eq!(len as usize, message.len());
}

#[test]
fn get_family_is_golden() {
    is(get_family(7, "nbd"), "1c000000 1000 0500 07000000 00000000 03 01 0000 0800 0200 6e626400");
}

#[test]
fn connect_is_golden() {
    let c = Config {
        index: Some(3),
        size: Some(1 << 30),
        block_size: Some(4096),
        timeout: Some(0),
        server_flags: Some(0x16d),
        client_flags: None,
        dead_conn_timeout: Some(60),
        backend: Some("quarry:v"),
        sockets: &[5, 6],
    };
    is(
        connect(0x1c, 2, &c),
        "84000000 1c00 0500 02000000 00000000 01 01 0000
         0800 0100 03000000
         0c00 0200 0000004000000000
         0c00 0300 0010000000000000
         0c00 0400 0000000000000000
         0c00 0500 6d01000000000000
         1c00 0780 0c00 0180 0800 0100 05000000 0c00 0180 0800 0100 06000000
         0c00 0800 3c00000000000000
         0d00 0a00 7175617272793a7600 000000",
    );
}

#[test]
fn the_short_requests_are_golden() {
    let c = Config { index: Some(1), size: Some(512), ..Config::default() };
    is(
        reconfigure(0x1c, 1, &c),
        "28000000 1c00 0500 01000000 00000000 03 01 0000 0800 0100 01000000
         0c00 0200 0002000000000000",
    );
    is(
        disconnect(0x1c, 1, 9),
        "1c000000 1c00 0500 01000000 00000000 02 01 0000 0800 0100 09000000",
    );
    is(status(0x1c, 1, None), "14000000 1c00 0500 01000000 00000000 05 01 0000");
    is(
        status(0x1c, 1, Some(2)),
        "1c000000 1c00 0500 01000000 00000000 05 01 0000 0800 0100 02000000",
    );
}

fn unhex(hex: &str) -> Vec<u8> {
    let h: String = hex.split_whitespace().collect();
    (0..h.len()).step_by(2).map(|i| u8::from_str_radix(&h[i..i + 2], 16).unwrap()).collect()
}

/// A status of three devices, then the acknowledgement.
fn status_answer() -> Vec<u8> {
    unhex(
        "4c000000 1c00 0000 05000000 00000000 05 01 0000
         3800 0980
           1400 0180 0800 0100 00000000 0500 0200 01000000
           1400 0180 0800 0100 01000000 0500 0200 00000000
           0c00 0100 0800 0100 0a000000
         24000000 0200 0001 05000000 00000000 00000000 14000000 1c00 0500 05000000 00000000",
    )
}

#[test]
fn a_status_answer_is_read() {
    let bytes = status_answer();
    let got: Vec<_> = messages(&bytes).collect();
    assert_eq!(got.len(), 2, "{got:?}");
    let Ok(Message::Reply { seq: 5, kind: 0x1c, attributes }) = &got[0] else { panic!("{got:?}") };
    assert_eq!(device_list(attributes), Ok(vec![(0, true), (1, false), (10, false)]));
    assert_eq!(got[1], Ok(Message::Done { seq: 5, errno: 0 }));
}

#[test]
fn an_errno_and_a_family_number_are_read() {
    let e = unhex("24000000 0200 0000 09000000 00000000 feffffff 00000000000000000000000000000000");
    let got: Vec<_> = messages(&e).collect();
    assert_eq!(got, [Ok(Message::Done { seq: 9, errno: 2 })]);
    assert_eq!(family_id(&unhex("0800 0200 6e626400 0600 0100 1c00 0000")), Ok(0x1c));
    assert_eq!(
        family_id(&unhex("0800 0200 6e626400")).unwrap_err().to_string(),
        "the kernel's answer lacks the family's number"
    );
    assert_eq!(connected_index(&unhex("0800 0100 07000000")), Ok(7));
    assert!(connected_index(&unhex("0600 0100 0700 0000")).is_err());
}

/// Reads everything there is in a datagram, as the callers do.
fn read_all(bytes: &[u8]) -> usize {
    let mut n = 0;
    for m in messages(bytes) {
        n += 1;
        if let Ok(Message::Reply { attributes, .. }) = m {
            let _any =
                (family_id(attributes), connected_index(attributes), device_list(attributes));
        }
    }
    assert!(n <= bytes.len() / 16 + 1, "every message takes at least its header");
    n
}

#[test]
fn damaged_answers_end_in_an_error_at_every_cut_and_byte() {
    let whole = status_answer();
    for cut in 0..whole.len() {
        read_all(&whole[..cut]);
    }
    for at in 0..whole.len() {
        for x in [1u8, 0x7f, 0x80, 0xff] {
            let mut b = whole.clone();
            b[at] ^= x;
            read_all(&b);
        }
    }
    assert_eq!(messages(&whole[..10]).next(), Some(Err(ParseError::Short)));
    let zero_length = [0u8; 32];
    assert_eq!(messages(&zero_length).collect::<Vec<_>>(), [Err(ParseError::Short)]);
    assert_eq!(device_list(&[3, 0, 9, 0]), Err(ParseError::Attribute));
}

#[test]
fn random_answers_are_survived() {
    // A plain generator with a fixed seed: the same bytes every time.
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..20_000 {
        let mut bytes = if round % 2 == 0 { status_answer() } else { vec![0; round % 97] };
        let times = 1 + round % 9;
        for _ in 0..times.max(if round % 2 == 0 { 0 } else { bytes.len() }) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let n = bytes.len().max(1);
            if let Some(b) = bytes.get_mut((x >> 8) as usize % n) {
                *b = x as u8;
            }
        }
        read_all(&bytes);
    }
}
