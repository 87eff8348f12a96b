%% script/demo_client.erl PORT: several clients at once talk to the echo server on that port over TCP and compare every
%% byte. Prints what a person wants to see; exits 0 only when all came back.
-module(demo_client).
-mode(compile).
-export([main/1]).

-define(CLIENTS, 8).
-define(ROUND_TRIPS, 5000).
%% A client gives up on an answer after this time: the server hangs.
-define(PATIENCE_MS, 20000).

main([PortText]) ->
    Port = list_to_integer(PortText),
    greet(Port),
    Small = load(Port, "64 B messages", ?ROUND_TRIPS, fun() -> 64 end),
    Mixed = load(Port, "messages of 1 B to 64 KiB", 500, fun() -> rand:uniform(65536) end),
    Bytes = Small + Mixed,
    io:format("every byte came back: ~b of ~b~n", [Bytes, Bytes]).

greet(Port) ->
    Socket = connect(Port),
    Said = <<"Hello, Python! This is Erlang.">>,
    {ok, _} = round_trip(Socket, Said),
    io:format("sent ~p~ngot  ~p~n", [Said, Said]),
    ok = gen_tcp:close(Socket).

%% Answers the number of bytes that went there and back.
load(Port, Name, Count, Size) ->
    Began = erlang:monotonic_time(),
    Clients = [spawn_monitor(fun() -> exit({done, client(Port, Count, Size)}) end) || _ <- lists:seq(1, ?CLIENTS)],
    Results = [await(Client) || Client <- Clients],
    Seconds = (erlang:monotonic_time() - Began) / erlang:convert_time_unit(1, second, native),
    Times = lists:sort(lists:append([T || {_, T} <- Results])),
    Bytes = lists:sum([B || {B, _} <- Results]),
    io:format("~b clients, ~s: ~b round trips in ~.2f s = ~b a second, latency p50 ~s p99 ~s~n", [
        ?CLIENTS, Name, length(Times), Seconds, round(length(Times) / Seconds), percentile(50, Times), percentile(99, Times)
    ]),
    Bytes.

await({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, {done, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} ->
            io:format(standard_error, "a client failed: ~p~n", [Reason]),
            halt(1)
    end.

client(Port, Count, Size) ->
    Socket = connect(Port),
    Result = talk(Socket, Count, Size, 0, []),
    %% Nothing more may come than what was sent.
    ok = gen_tcp:shutdown(Socket, write),
    {error, closed} = gen_tcp:recv(Socket, 0, ?PATIENCE_MS),
    Result.

talk(_Socket, 0, _Size, Bytes, Times) ->
    {Bytes, Times};
talk(Socket, Count, Size, Bytes, Times) ->
    Message = rand:bytes(Size()),
    {ok, Time} = round_trip(Socket, Message),
    talk(Socket, Count - 1, Size, Bytes + byte_size(Message), [Time | Times]).

round_trip(Socket, Message) ->
    Began = erlang:monotonic_time(microsecond),
    ok = gen_tcp:send(Socket, Message),
    case gen_tcp:recv(Socket, byte_size(Message), ?PATIENCE_MS) of
        {ok, Message} -> {ok, erlang:monotonic_time(microsecond) - Began};
        {ok, Other} -> {error, {sent, Message, received, Other}};
        {error, _} = Error -> Error
    end.

connect(Port) ->
    {ok, Socket} = gen_tcp:connect("127.0.0.1", Port, [binary, {active, false}, {nodelay, true}], ?PATIENCE_MS),
    Socket.

percentile(P, Sorted) ->
    Us = lists:nth(max(1, ceil(length(Sorted) * P / 100)), Sorted),
    io_lib:format("~.2f ms", [Us / 1000]).
