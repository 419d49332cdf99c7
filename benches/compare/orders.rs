//! The process that calls, from inside: what it is told on standard input, and its answers.
//!
//! | order | answer, a line of JSON |
//! |---|---|
//! | `first` | `{}` once a call has been answered, however long that takes |
//! | `callers COUNT MILLIS` | `p50`, `p90`, `p99`, `p99.9` in microseconds, `rate` in calls per second, and `calls` in all |
//! | `down BYTES SIZE`, `up BYTES SIZE`, `chat BYTES SIZE` | `rate` in MB/s, one way |
//! | `downs STREAMS BYTES SIZE` | the same of several streams together |
//! | `beside MILLIS BYTES SIZE` | as `callers` of one caller beside a stream, and the stream's rate as `bulk` |
//! | `mixed MILLIS` | of every kind of call: `rate` of those that did not fail in calls per second, those that `failed` and `why` the first did, those whose own deadline `expired`; `p50` and `p99` of the small ones in milliseconds, if there are enough |
//! | `gap LEAST MOST` | `{"calling": 1}` at once; after so many milliseconds of calls, `gap`: the most that passed between two answers, or `{}` when none came for so long |
//! | `fresh COUNT` | `mean` milliseconds from a dial to its first answer; only of who dials an address |

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tonic::transport::Channel;

use crate::common::Failure;
use crate::common::service::pb::echo_client::EchoClient;
use crate::common::work::{self as basic, Transport};
use crate::{mixed, work};

/// Makes a connection of its own.
pub(crate) type Dial<'a> = dyn Fn() -> Result<Channel, Failure> + Sync + 'a;

/// Ends with standard input. What dials an address says how it does.
pub(crate) async fn serve<T: Transport>(client: EchoClient<T>, dial: Option<&Dial<'_>>) -> Result<(), Failure> {
    let mut client = client.max_decoding_message_size(4 << 20);
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let answer = obey(&mut client, dial, &order).await.map_err(|error| format!("{order}: {error}"))?;
        println!("{answer}");
    }
    Ok(())
}

async fn obey<T: Transport>(
    client: &mut EchoClient<T>,
    dial: Option<&Dial<'_>>,
    order: &str,
) -> Result<Value, Failure> {
    let mut words = order.split(' ');
    let what = words.next().unwrap_or_default();
    let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
    let size = |size: u64| usize::try_from(size);
    Ok(match (what, numbers.as_slice()) {
        ("first", []) => {
            work::first(client).await;
            json!({})
        }
        ("callers", &[callers, millis]) => told(&work::callers(client, callers, Duration::from_millis(millis)).await?),
        ("down", &[bytes, each]) => {
            json!({ "rate": basic::task(basic::download(client.clone(), bytes, size(each)?)).await?.0 })
        }
        ("up", &[bytes, each]) => {
            json!({ "rate": basic::task(basic::upload(client.clone(), bytes, size(each)?)).await?.0 })
        }
        ("chat", &[bytes, each]) => {
            json!({ "rate": basic::task(work::chat(client.clone(), bytes, size(each)?)).await? })
        }
        ("downs", &[streams, bytes, each]) => {
            json!({ "rate": work::downloads(client, streams, bytes, size(each)?).await? })
        }
        ("beside", &[millis, bytes, each]) => {
            let (calls, bulk) = work::beside(client, Duration::from_millis(millis), bytes, size(each)?).await?;
            let mut answer = told(&calls);
            answer["bulk"] = json!(bulk);
            answer
        }
        ("mixed", &[millis]) => mixed::calls(client, Duration::from_millis(millis)).await?,
        ("gap", &[least, most]) => {
            println!("{}", json!({ "calling": 1 }));
            match work::gap(client, Duration::from_millis(least), Duration::from_millis(most)).await {
                Some(gap) => json!({ "gap": gap.as_secs_f64() * 1e3 }),
                None => json!({}),
            }
        }
        ("fresh", &[count]) => {
            let dial = dial.ok_or("this one dials no address")?;
            let started = Instant::now();
            for _ in 0..count {
                basic::one_call(&mut EchoClient::new(dial()?)).await?;
            }
            json!({ "mean": started.elapsed().as_secs_f64() * 1e3 / count as f64 })
        }
        _ => return Err("no such order".into()),
    })
}

fn told(calls: &work::Calls) -> Value {
    json!({
        "p50": calls.micros(500), "p90": calls.micros(900), "p99": calls.micros(990), "p99.9": calls.micros(999),
        "rate": calls.rate, "calls": calls.count(),
    })
}
