#!/usr/bin/env escript
%% -*- erlang -*-
%%% A node with py_reactor that does what it is told. Each line of stdin is an Erlang expression; the
%%% answer is one line of JSON behind `= ', or the reason of its failure behind `! '. What is logged
%%% is kept, and goes to stderr as well. The end of stdin stops the node in good order.
-module(proof_node).
-mode(compile).

%% For the expressions
-export([start/1, listen/1, listen/2, counts/0, logged/0, contexts/0, running/1, reductions/1, kill/1]).
-export([subscribers/1, flood/3]).
%% Logger handler
-export([log/2]).

-define(LOG, proof_log).
-define(LISTENER, proof).

main([]) ->
    ?LOG = ets:new(?LOG, [named_table, public, ordered_set]),
    ok = logger:remove_handler(default),
    ok = logger:add_handler(?LOG, ?MODULE, #{}),
    true = register(?LISTENER, self()),
    ok = add_code_path(filename:join([root(), "_build", "default", "lib"])),
    %% What formats a log line is loaded now: later there may be no descriptor for that.
    logger:notice("ready"),
    _ = logged(),
    obey().

obey() ->
    case io:get_line("") of
        eof ->
            init:stop(),
            receive after infinity -> ok end;
        Line ->
            {Mark, Answer} = answer(Line),
            io:put_chars([Mark, " ", Answer, "\n"]),
            obey()
    end.

answer(Line) ->
    try
        {ok, Tokens, _} = erl_scan:string(Line),
        {ok, Expressions} = erl_parse:parse_exprs(Tokens),
        {value, Value, _} = erl_eval:exprs(Expressions, []),
        {"=", json(Value)}
    catch
        _:Reason:Stack -> {"!", io_lib:format("~0tp ~0tp", [Reason, Stack])}
    end.

%% Tuples become lists, and what JSON has no kind for becomes its text.
json(Map) when is_map(Map) ->
    Members = [[json(key(Key)), $:, json(Value)] || {Key, Value} <- maps:to_list(Map)],
    [${, lists:join($,, Members), $}];
json(Number) when is_integer(Number) -> integer_to_list(Number);
json(Number) when is_float(Number) -> float_to_list(Number, [short]);
json(Truth) when is_boolean(Truth) -> atom_to_list(Truth);
json(undefined) -> "null";
json(List) when is_list(List) -> [$[, lists:join($,, lists:map(fun json/1, List)), $]];
json(Tuple) when is_tuple(Tuple) -> json(tuple_to_list(Tuple));
json(Text) when is_binary(Text) -> [$", lists:map(fun escape/1, unicode:characters_to_list(Text)), $"];
json(Atom) when is_atom(Atom) -> json(atom_to_binary(Atom));
json(Other) -> json(list_to_binary(io_lib:format("~p", [Other]))).

key(Key) when is_atom(Key); is_binary(Key) -> Key;
key(Key) -> list_to_binary(io_lib:format("~p", [Key])).

escape(Char) when Char =:= $"; Char =:= $\\ -> [$\\, Char];
escape(Char) when Char < 32; Char > 126, Char < 16#10000 -> io_lib:format("\\u~4.16.0b", [Char]);
escape(Char) when Char > 126 -> "?";
escape(Char) -> Char.

add_code_path(Lib) ->
    case filelib:wildcard(filename:join([Lib, "*", "ebin"])) of
        [] ->
            io:format(standard_error, "py_reactor is not built: run rebar3 compile~n", []),
            halt(2);
        Paths ->
            code:add_pathsa(Paths)
    end.

root() ->
    filename:join([filename:dirname(filename:absname(escript:script_name())), "..", ".."]).

%%--------------------------------------------------------------------------------------------------
%% For the expressions

%% Starts the application with these settings.
start(Settings) ->
    maps:foreach(fun(Key, Value) -> application:set_env(py_reactor, Key, Value) end, Settings),
    {ok, _} = application:ensure_all_started(py_reactor),
    ok = py:add_path(filename:join([root(), "bench", "servers"])),
    ok = py:add_path(filename:join(root(), "examples")),
    ok = py:exec(<<"import proof_protocols">>).

%% A listener on the loopback address with a protocol of proof_protocols.py; returns its port.
listen(Protocol) ->
    listen(Protocol, #{}).

listen(Protocol, Options) ->
    Defaults = #{
        ip => {127, 0, 0, 1}, port => 0, backlog => 1024, protocol => {proof_protocols, Protocol}
    },
    {ok, _} = py_reactor:start_listener(?LISTENER, maps:merge(Defaults, Options)),
    py_reactor:get_port(?LISTENER).

%% What must not grow.
counts() ->
    {ok, Protocols} = py:eval(<<"__import__('proof_protocols').living()">>),
    #{
        descriptors => length(names("/proc/self/fd")),
        ports => length(erlang:ports()),
        processes => length(erlang:processes()),
        threads => length(threads()),
        protocols => Protocols
    }.

%% Without the courier, which the library makes for itself when it first needs it.
threads() ->
    Name = fun(Task) -> file:read_file("/proc/self/task/" ++ Task ++ "/comm") end,
    [Task || Task <- names("/proc/self/task"), Name(Task) =/= {ok, <<"py courier\n">>}].

names(Folder) ->
    {ok, Names} = file:list_dir(Folder),
    Names.

%% [{Milliseconds, Level, Text}] since the last time that this was asked.
logged() ->
    Lines = ets:tab2list(?LOG),
    [ets:delete(?LOG, Key) || {Key, _} <- Lines],
    [Line || {_, Line} <- Lines].

contexts() ->
    [{Context, py_reactor_context:stats(Context)} || Context <- py_reactor_pool:contexts()].

%% The processes that run this module of OTP's kind.
running(Module) ->
    [Pid || Pid <- erlang:processes(), initial_module(Pid) =:= Module].

%% What the processes of this kind have done so far: it hardly grows while they only wait.
reductions(Module) ->
    Done = [process_info(Pid, reductions) || Pid <- running(Module)],
    lists:sum([Reductions || {reductions, Reductions} <- Done]).

initial_module(Pid) ->
    case process_info(Pid, dictionary) of
        {dictionary, Dictionary} ->
            case proplists:get_value('$initial_call', Dictionary) of
                {Module, _, _} -> Module;
                _ -> undefined
            end;
        undefined ->
            undefined
    end.

%% Kills a random process of this kind. Of a context: what it and all others counted just before.
kill(py_reactor_context) ->
    case contexts() of
        [] ->
            none;
        Contexts ->
            {Victim, _} = lists:nth(rand:uniform(length(Contexts)), Contexts),
            exit(Victim, kill),
            [{Context =:= Victim, Context, Stats} || {Context, Stats} <- Contexts, is_map(Stats)]
    end;
kill(Kind) ->
    case running(Kind) of
        [] -> none;
        Pids -> exit(lists:nth(rand:uniform(length(Pids)), Pids), kill)
    end.

%% The next connections that have told this process that they are there.
subscribers(Number) ->
    [
        receive
            {<<"here">>, Connection} -> Connection
        after 10000 -> error(no_subscriber)
        end
     || _ <- lists:seq(1, Number)
    ].

%% Pushes numbered pieces to so many subscribers; returns how often each answer came.
flood(Number, Pieces, Bytes) ->
    Subscribers = subscribers(Number),
    lists:foldl(
        fun(Piece, Counts) ->
            Data = [<<Piece:64>>, binary:copy(<<Piece>>, Bytes - 8)],
            lists:foldl(fun(Subscriber, C) -> count(push(Subscriber, Data), C) end, Counts, Subscribers)
        end,
        #{},
        lists:seq(1, Pieces)
    ).

%% `overload' is for who pushes faster than the context sends: it has to wait.
push(Subscriber, Data) ->
    case py_reactor:push(Subscriber, Data) of
        {error, overload} ->
            timer:sleep(1),
            push(Subscriber, Data);
        Answer ->
            Answer
    end.

count(Answer, Counts) ->
    maps:update_with(Answer, fun(Count) -> Count + 1 end, 1, Counts).

%%--------------------------------------------------------------------------------------------------
%% Log

log(#{level := Level, meta := #{time := Micros}} = Event, _Handler) ->
    Text = logger_formatter:format(Event, #{template => [msg], single_line => true}),
    Line = {Micros div 1000, Level, unicode:characters_to_binary(Text)},
    ets:insert(?LOG, {erlang:unique_integer([monotonic]), Line}),
    io:format(standard_error, "~b ~s ~ts~n", tuple_to_list(Line)).
