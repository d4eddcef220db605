use harp_model::*;
use std::collections::{HashSet,HashMap};
use stateright::Model;
fn main(){
    let a:Vec<String>=std::env::args().collect();
    let g=|i:usize|a[i].parse::<u8>().unwrap();
    let mut b=Bounds::none(1,Durability::Disk);
    b.ops=g(1);b.views=g(2);b.crashes=g(3);b.media_losses=g(4);
    b.leases=Leases::Ignored;
    let max:usize=a[5].parse().unwrap();
    let group=Group::new(b);
    let mut seen=HashSet::new(); let mut trip=HashSet::new(); let mut locals=vec![HashSet::new();3];
    let mut mails:HashMap<u32,usize>=HashMap::new();
    let mut q=std::collections::VecDeque::new();
    for s in group.init_states(){seen.insert(s.clone());q.push_back(s);}
    let mut acts=vec![];
    let mut n=0; let mut maillen=0;
    while let Some(s)=q.pop_front(){
        n+=1; if n>max {break;}
        maillen+=s.mail.len();
        trip.insert((s.servers,s.used,s.history));
        for i in 0..3{locals[i].insert(s.servers[i]);}
        for m in s.mail.iter(){*mails.entry(*m).or_default()+=1;}
        acts.clear(); group.actions(&s,&mut acts);
        for x in acts.drain(..){ if let Some(t)=group.next_state(&s,x){ if !seen.contains(&t){seen.insert(t.clone());q.push_back(t);} } }
    }
    println!("states {n} triples {} locals {:?} avg mail {}",trip.len(),locals.iter().map(|l|l.len()).collect::<Vec<_>>(),maillen as f64/n as f64);
    let mut v:Vec<_>=mails.into_iter().collect(); v.sort_by_key(|x|std::cmp::Reverse(x.1));
    for (m,c) in v.iter().take(60){ println!("{:.3} {}",*c as f64/n as f64, group.words(Step::Deliver(*m)).chars().take(230).collect::<String>()); }
}
